"""Steps 2 and 3: what the container is, and that it runs."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress

from flows.act import ownership
from flows.act.context import Context
from flows.act.steps.base import Effect, Step
from flows.domain.operation import OperationKind, StepName
from flows.domain.ports import ContainerSpec
from flows.errors import AmbiguousEffect, Conflict, NotFound


class Configure(Step):
    """Absolute values, so that it says the same however often it arrives."""

    name = StepName.CONFIGURE
    deadline_s = 120.0
    effect = Effect.CONVERGENT

    async def do(self, ctx: Context) -> None:
        server, network = ctx.server, ctx.deps.settings.network
        await ctx.settle()
        await ctx.own()
        await ctx.task(
            ctx.proxmox.configure(
                server.node,
                server.vmid,
                ContainerSpec(
                    tags=ownership.tags(server, ctx.operation.id),
                    cores=server.cores,
                    memory_mb=server.memory_mb,
                    disk_gb=server.disk_gb,
                    bridge=server.bridge,
                    address_cidr=f"{server.address}/{ipaddress.ip_network(network.pool).prefixlen}",
                    gateway=network.gateway,
                ),
            )
        )


class StartContainer(Step):
    """Running, and its address answers: a refused connection is an answer, silence is none."""

    name = StepName.START_CONTAINER
    deadline_s = 180.0
    effect = Effect.LEASED

    def left_out(self, ctx: Context) -> bool:
        """A container in the making must run to be made; one that exists is not started for a suspended customer."""
        return ctx.suspended and ctx.operation.kind is not OperationKind.PROVISION

    async def already_done(self, ctx: Context) -> bool:
        await ctx.settle()
        return await ctx.deps.proxmox.status(ctx.server.node, ctx.server.vmid) == "running" and await _answers(ctx.server.address)

    async def do(self, ctx: Context) -> None:
        server = ctx.server
        if await ctx.deps.proxmox.status(server.node, server.vmid) != "running":
            await ctx.own()
            try:
                await ctx.task(ctx.proxmox.start(server.node, server.vmid))
            except AmbiguousEffect:
                ctx.say("the answer to the start was lost; looking what came of it")
        while not await _answers(server.address):
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)

    async def undo(self, ctx: Context) -> None:
        if ctx.operation.kind is not OperationKind.PROVISION:
            return
        await ctx.settle()
        server = ctx.server
        try:
            if await ctx.deps.proxmox.status(server.node, server.vmid) != "running":
                return
            await ctx.own()
        except (NotFound, Conflict) as error:  # a person may have removed it; whose its VMID is now shows where it is released
            ctx.say(f"nothing to stop: {error}")
            return
        with contextlib.suppress(NotFound):
            await ctx.task(ctx.proxmox.stop(server.node, server.vmid))


async def _answers(address: str, port: int = 22, timeout_s: float = 3.0) -> bool:
    """Whether a host is there at all."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
            return True
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
