"""What each provisioning playbook is given for a server: by the steps that run it, and to a person's ``ansible-playbook`` (lookup ``zlh_given``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from flows.act.deps import Deps
from flows.domain.server import ContainerType, Server
from flows.errors import MisconfiguredSetting

AGENT_VERSION = "0.1.0"
WORKSPACE = "/home/dev/workspace"
PLATFORM_MODS = ("fabric-api", "fabricproxy-lite")


@dataclass(frozen=True)
class Variables:
    """``secrets`` are shown nowhere."""

    plain: dict[str, object]
    secrets: dict[str, str] = field(default_factory=dict, repr=False)


def trust(deps: Deps) -> Variables:
    """``bootstrap.yml``. Raises MisconfiguredSetting: no public key."""
    return Variables(
        {"base_authorized_key": deps.public_key(), "base_control_addresses": list(deps.settings.network.control_addresses)},
    )


async def agent(deps: Deps, server: Server) -> Variables:
    """``deploy_agent.yml``, with a new certificate. Raises NotFound: no such release is promoted."""
    artifact = await deps.artifact("agent", "zlh-agent", AGENT_VERSION)
    identity = deps.identity(server)
    secrets = {"zlh_agent_token": identity.token.get_secret_value()}
    if identity.previous_token is not None:
        secrets["zlh_agent_previous_token"] = identity.previous_token.get_secret_value()
    if identity.certificate is not None and identity.key is not None:
        secrets["zlh_agent_tls_cert"] = identity.certificate
        secrets["zlh_agent_tls_key"] = identity.key.get_secret_value()
    return Variables(
        {
            "zlh_agent_server_id": server.id,
            "zlh_agent_version": artifact.version,
            "zlh_agent_url": artifact.url,
            "zlh_agent_sha256": artifact.sha256,
            "zlh_agent_bind": server.address,
            "zlh_agent_port": deps.settings.agent.port,
            "zlh_agent_kind": server.ctype.value,
            "zlh_agent_control_addresses": list(deps.settings.network.control_addresses),
        },
        secrets,
    )


async def workload(deps: Deps, server: Server) -> Variables:
    """``preseed_fabric.yml`` for games, ``dev_environment.yml`` for developers. Raises NotFound, MisconfiguredSetting."""
    return await (_game if server.ctype is ContainerType.GAME else _developer)(deps, server)


async def _game(deps: Deps, server: Server) -> Variables:
    secret = deps.settings.ansible.forwarding_secret.get_secret_value()
    if not secret:  # offline mode beside an empty secret admits anybody under any name
        raise MisconfiguredSetting(
            "ZLH_ANSIBLE__FORWARDING_SECRET",
            why="is empty: the proxy could not prove itself to the game server",
            remedy="set it to the content of Velocity's forwarding.secret",
        )
    jar = await deps.artifact("jar", server.flavor, server.version)
    mods = [await deps.artifact("mod", name, "") for name in PLATFORM_MODS] if server.flavor == "fabric" else []
    return Variables(
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


async def _developer(deps: Deps, server: Server) -> Variables:
    runtimes = [await deps.artifact("runtime", r.name, r.version) for r in server.runtimes]
    return Variables(
        {
            "dev_environment_runtimes": [{"name": r.name, "version": r.version, "url": r.url, "sha256": r.sha256} for r in runtimes],
            "dev_environment_code_server": server.code_server,
            "dev_environment_workspace": WORKSPACE,
        }
    )
