"""What a person's ``ansible-playbook`` is given: the same as the flows' steps, from the same settings, database, vault and catalog. Called by
the lookups of ``playbooks/lookup_plugins`` on the controller. Never prints; the caller must not either."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pydantic import SecretStr

from flows import bootstrap
from flows.act import playbook_variables
from flows.clients.ca import CertificateAuthority
from flows.domain.server import ContainerType, ServerState
from flows.errors import BadInput, MisconfiguredSetting, NotFound
from flows.settings import Settings, load
from flows.state import servers

_ABSENT = object()
PREPARATION = {ContainerType.GAME: "preseed_fabric.yml", ContainerType.DEV: "dev_environment.yml"}


def settings(env_file: str = "") -> Settings:
    """Those of an env file alone (``zlh up`` writes one), or of the environment. Raises MisconfiguredSetting."""
    if env_file and not Path(env_file).is_file():
        raise MisconfiguredSetting(
            env_file, why="does not exist", remedy="start the lab here (zlh up --fleet lxc), or set LAB_ENV_FILE to its zlh.env"
        )
    return load({"ZLH_ENV_FILE": env_file} if env_file else os.environ)


def setting(name: str, env_file: str = "") -> str:
    """``proxmox.token`` → its value; ``proxmox.url`` is made of the host. Raises BadInput, MisconfiguredSetting."""
    chosen = settings(env_file)
    if name == "proxmox.url":
        host = chosen.proxmox.host
        return f"https://{host if host.rpartition(':')[2].isdigit() and not host.endswith(']') else f'{host}:8006'}"
    group, _, field = name.partition(".")
    value = chosen.model_dump().get(group, {}).get(field, _ABSENT)
    if value is _ABSENT:
        raise BadInput("setting", name, why="does not exist", remedy="docs/settings.md lists them: group.name in lower case")
    return value.get_secret_value() if isinstance(value, SecretStr) else "" if value is None else str(value)


def variables(playbook: str, server_id: str, *, certificate: str = "", key: str = "", env_file: str = "") -> dict[str, object]:
    """Everything that the flows would give to that playbook for that server; secrets, too. ``certificate`` and ``key`` are those that the agent
    has: it keeps them while they are good. Raises NotFound (no such living server, no such artifact), BadInput, MisconfiguredSetting."""
    return asyncio.run(_variables(playbook, server_id, certificate, key, env_file))


async def _variables(playbook: str, server_id: str, certificate: str, key: str, env_file: str) -> dict[str, object]:
    async with bootstrap.deps(settings(env_file)) as deps:
        async with deps.database.read() as tx:
            server = await servers.get(tx, server_id)
        if server is None or server.state is ServerState.DELETED:
            raise NotFound(f"server {server_id}", why="is not in the controller's database", remedy="check that the inventory is of the same fleet")
        if playbook == "bootstrap.yml":
            given = playbook_variables.trust(deps)
        elif playbook == "deploy_agent.yml":
            given = await playbook_variables.agent(deps, server)
            if CertificateAuthority(deps.settings.agent.ca_dir).still_good(certificate, key, server.id, server.address):
                given.secrets.update({"zlh_agent_tls_cert": certificate, "zlh_agent_tls_key": key} if deps.settings.agent.tls else {})
        elif playbook == PREPARATION[server.ctype]:
            given = await playbook_variables.workload(deps, server)
        else:
            raise BadInput("playbook", playbook, why=f"is not for a {server.ctype.value} server", remedy=f"use {PREPARATION[server.ctype]}")
    return {**given.plain, **given.secrets}
