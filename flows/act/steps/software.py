"""Steps 4 to 6, by Ansible: trust, the agent, and what the container is for. Every play converges and may run again."""

from __future__ import annotations

from flows.act.context import Context
from flows.act.steps.base import Effect, Step
from flows.domain.operation import StepName
from flows.domain.server import ContainerType
from flows.errors import AutomationError, BadAnswer, MisconfiguredSetting
from flows.state import host_keys

AGENT_VERSION = "0.1.0"
WORKSPACE = "/home/dev/workspace"


class Trust(Step):
    """Through the node: new SSH host keys, our public key, and the host keys read back. Strict SSH from then on."""

    name = StepName.TRUST
    deadline_s = 300.0
    effect = Effect.HELD_OPEN

    async def do(self, ctx: Context) -> None:
        await ctx.own()  # the node enters it by its VMID
        result = await ctx.play(
            "bootstrap.yml",
            {
                "base_authorized_key": ctx.deps.public_key(),
                "base_control_addresses": list(ctx.deps.settings.network.control_addresses),
            },
        )
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

    async def already_done(self, ctx: Context) -> bool:
        try:
            health = await ctx.deps.agents.health(ctx.server)
        except AutomationError as error:
            ctx.say(f"the agent does not answer yet: {error}")
            return False
        return health.get("version") == AGENT_VERSION

    async def do(self, ctx: Context) -> None:
        artifact = await ctx.deps.artifact("agent", "zlh-agent", AGENT_VERSION)
        identity = ctx.deps.identity(ctx.server)
        secrets = {"zlh_agent_token": identity.token.get_secret_value()}
        if identity.previous_token is not None:
            secrets["zlh_agent_previous_token"] = identity.previous_token.get_secret_value()
        if identity.certificate is not None and identity.key is not None:
            secrets["zlh_agent_tls_cert"] = identity.certificate
            secrets["zlh_agent_tls_key"] = identity.key.get_secret_value()
        await ctx.play(
            "deploy_agent.yml",
            {
                "zlh_agent_server_id": ctx.server.id,
                "zlh_agent_version": artifact.version,
                "zlh_agent_url": artifact.url,
                "zlh_agent_sha256": artifact.sha256,
                "zlh_agent_bind": ctx.server.address,
                "zlh_agent_port": ctx.deps.settings.agent.port,
                "zlh_agent_kind": ctx.server.ctype.value,
            },
            secrets,
        )
        while not await self.already_done(ctx):
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


class PrepareWorkload(Step):
    """Fabric pre-seed for games; user, sshd, runtimes and code-server for developers."""

    name = StepName.PREPARE_WORKLOAD
    deadline_s = 1200.0
    effect = Effect.HELD_OPEN

    async def do(self, ctx: Context) -> None:
        if ctx.server.ctype is ContainerType.GAME:
            await self._game(ctx)
        else:
            await self._developer(ctx)

    async def _game(self, ctx: Context) -> None:
        server = ctx.server
        secret = ctx.deps.settings.ansible.forwarding_secret.get_secret_value()
        if not secret:  # offline mode beside an empty secret admits anybody under any name
            raise MisconfiguredSetting(
                "ZLH_ANSIBLE__FORWARDING_SECRET",
                why="is empty: the proxy could not prove itself to the game server",
                remedy="set it to the content of Velocity's forwarding.secret",
            )
        jar = await ctx.deps.artifact("jar", server.flavor, server.version)
        mods = [await ctx.deps.artifact("mod", name, "") for name in ("fabric-api", "fabricproxy-lite")] if server.flavor == "fabric" else []
        await ctx.play(
            "preseed_fabric.yml",
            {
                "fabric_server_flavor": server.flavor,
                "fabric_server_version": server.version,
                "fabric_server_memory_mb": server.memory_mb,
                "fabric_server_port": server.game_port,
                "fabric_server_jar_url": jar.url,
                "fabric_server_jar_sha256": jar.sha256,
                "fabric_server_mods": [{"name": m.name, "url": m.url, "sha256": m.sha256} for m in mods],
            },
            {"fabric_server_forwarding_secret": secret},
        )

    async def _developer(self, ctx: Context) -> None:
        runtimes = [await ctx.deps.artifact("runtime", r.name, r.version) for r in ctx.server.runtimes]
        await ctx.play(
            "dev_environment.yml",
            {
                "dev_environment_runtimes": [{"name": r.name, "version": r.version, "url": r.url, "sha256": r.sha256} for r in runtimes],
                "dev_environment_code_server": ctx.server.code_server,
                "dev_environment_workspace": WORKSPACE,
            },
        )
