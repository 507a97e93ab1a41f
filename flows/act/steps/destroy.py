"""``destroy_container``: stop, destroy, prove absent. Container, operation and lease are read again immediately before."""

from __future__ import annotations

from flows.act import ownership
from flows.act.context import Context
from flows.act.steps.base import Effect, Step
from flows.domain.operation import StepName
from flows.domain.server import Server
from flows.errors import AmbiguousEffect, Conflict, DeadlineExceeded, NotFound, TaskFailed, Unproven

#: Attempts at proof after a destroy, one poll apart each.
PROOFS = 60


async def destroy(ctx: Context, server: Server, *, half: bool = False) -> None:
    """Ends with the container proven absent, or raises. Convergent: called again after any interruption. ``half``: the caller has shown
    that it is our own clone, dead under its lock before it got its marks."""
    proxmox = ctx.deps.proxmox
    for _ in range(3):
        if not await _is_ours(ctx, server, half=half):
            break
        if await proxmox.status(server.node, server.vmid) == "running":
            await ctx.task(ctx.proxmox.stop(server.node, server.vmid))
        await ctx.refresh()
        if not await _is_ours(ctx, server, half=half):  # a stop may last
            break
        try:
            await ctx.task(ctx.proxmox.destroy(server.node, server.vmid))
        except (AmbiguousEffect, NotFound):
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)
        except TaskFailed as error:
            if "does not exist" not in error.why:
                raise
    await prove_absent(ctx, server)


async def _is_ours(ctx: Context, server: Server, *, half: bool) -> bool:
    """False: it is gone. Raises Conflict where it carries none of our marks."""
    try:
        config = await ctx.deps.proxmox.config(server.node, server.vmid)
    except NotFound:
        return False
    if not (ownership.ours(config, server, ctx.operation.id) or (half and config.lock == "create")):
        raise Conflict(
            f"container {server.vmid}",
            why="it carries none of our marks: it is not destroyed",
            remedy=f"look at it: pct config {server.vmid}",
        )
    return True


async def prove_absent(ctx: Context, server: Server) -> None:
    """Waits until Proxmox denies the VMID by every way there is. Raises DeadlineExceeded."""
    last: Unproven | None = None
    for _ in range(PROOFS):
        try:
            if await ctx.deps.proxmox.proven_absent(server.vmid, template_vmid=server.template_vmid):
                return
        except Unproven as error:
            last = error
        await ctx.pause(ctx.deps.settings.timing.ready_poll_s)
    raise DeadlineExceeded(f"container {server.vmid}", why=str(last) if last else "it still exists after its destruction") from last


class DestroyContainer(Step):
    """Deletion's point of no return."""

    name = StepName.DESTROY_CONTAINER
    deadline_s = 900.0  #: its proof waits for clones of the same template
    effect = Effect.LEASED

    async def already_done(self, ctx: Context) -> bool:
        await ctx.settle()
        return await ctx.deps.proxmox.proven_absent(ctx.server.vmid, template_vmid=ctx.server.template_vmid)

    async def do(self, ctx: Context) -> None:
        await destroy(ctx, ctx.server)
