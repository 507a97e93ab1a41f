"""Steps 4 to 6, by Ansible: trust, the agent, and what the container is for. Every play converges and may run again."""

from __future__ import annotations

from flows.act.context import Context
from flows.act.playbook_variables import AGENT_VERSION, agent, trust, workload
from flows.act.steps.base import Effect, Step
from flows.domain.operation import StepName
from flows.domain.server import ContainerType
from flows.errors import AutomationError, BadAnswer
from flows.state import host_keys


class Trust(Step):
    """Through the node: new SSH host keys, our public key, and the host keys read back. Strict SSH from then on."""

    name = StepName.TRUST
    deadline_s = 300.0
    effect = Effect.HELD_OPEN

    async def do(self, ctx: Context) -> None:
        await ctx.own()  # the node enters it by its VMID
        result = await ctx.play("bootstrap.yml", trust(ctx.deps).plain)
        keys = result.facts.get("host_keys")
        if not isinstance(keys, dict) or not keys:
            raise BadAnswer(f"trust of {ctx.server.name}", why="the play read no host key back")
        async with ctx.deps.database.write() as tx:
            await ctx.check(tx)
            await host_keys.put(tx, ctx.server.id, ctx.server.address, {str(k): str(v) for k, v in keys.items()})

    async def undo(self, ctx: Context) -> None:
        async with ctx.deps.database.write() as tx:
            await ctx.check(tx)
            await host_keys.forget(tx, ctx.server.id)


class DeployAgent(Step):
    """The pinned release with its own token and certificate."""

    name = StepName.DEPLOY_AGENT
    deadline_s = 600.0
    effect = Effect.HELD_OPEN

    async def _answers(self, ctx: Context) -> bool:
        """No proof that the play is done: an agent of this very version may have an old certificate, or not be enabled yet."""
        try:
            health = await ctx.deps.agents.health(ctx.server)
        except AutomationError as error:
            ctx.say(f"the agent does not answer yet: {error}")
            return False
        return health.get("version") == AGENT_VERSION

    async def do(self, ctx: Context) -> None:
        given = await agent(ctx.deps, ctx.server)
        await ctx.play("deploy_agent.yml", given.plain, given.secrets)
        while not await self._answers(ctx):
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


class RestartAgent(Step):
    """Through the node, since its agent may be all that is wrong, or not: SSH may be down as well. The game outlives it."""

    name = StepName.RESTART_AGENT
    deadline_s = 180.0
    effect = Effect.HELD_OPEN

    async def already_done(self, ctx: Context) -> bool:
        """An earlier try may have restarted it: an agent that answers needs no other. A customer who orders one by hand means it."""
        return await self._answers(ctx)

    async def _answers(self, ctx: Context) -> bool:
        try:
            await ctx.deps.agents.health(ctx.server)
        except AutomationError as error:
            ctx.say(f"the agent does not answer yet: {error}")
            return False
        return True

    async def do(self, ctx: Context) -> None:
        await ctx.own()  # the node enters it by its VMID
        await ctx.play("restart_agent.yml", {})
        while not await self._answers(ctx):
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


class PrepareWorkload(Step):
    """Fabric pre-seed for games; user, sshd, runtimes and code-server for developers."""

    name = StepName.PREPARE_WORKLOAD
    deadline_s = 1200.0
    effect = Effect.HELD_OPEN

    async def do(self, ctx: Context) -> None:
        given = await workload(ctx.deps, ctx.server)
        await ctx.play("preseed_fabric.yml" if ctx.server.ctype is ContainerType.GAME else "dev_environment.yml", given.plain, given.secrets)
