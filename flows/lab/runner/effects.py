"""What each playbook does to a simulated container. Every effect converges: a second run says ``changed`` False."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flows.lab.agents.part import server_context
from flows.lab.world import LabAgent, LabContainer

#: Seconds that a download may take.
DOWNLOAD_S = 10.0


class TaskFailure(Exception):
    """A task failed; the text is what Ansible would show."""


class HostUnreachable(Exception):
    """No connection to the host."""


@dataclass(frozen=True)
class Inputs:
    """Variables and secrets of a run, and the port that the lab's agents listen on (0: not known here)."""

    variables: Mapping[str, Any]
    secrets: Mapping[str, str]
    agent_port: int = 0


@dataclass
class Effect:
    """What a run did. Nothing happens until ``apply`` is called: a run whose connection drops before leaves no trace."""

    changed: bool
    apply: Callable[[], None]
    facts: dict[str, Any] = field(default_factory=dict)


def nothing() -> None:
    """What a run does that finds everything as it should be."""


async def bootstrap(container: LabContainer, inputs: Inputs) -> Effect:
    """Trust: a host key of the container's own and the controller's public key."""
    wanted = str(inputs.variables["base_authorized_key"]).strip()
    if len(wanted.split()) < 2 or not wanted.split()[0].startswith(("ssh-", "ecdsa-", "sk-")):
        raise TaskFailure("invalid key specified: base_authorized_key is no SSH public key")
    host_key = container.host_key or Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def apply() -> None:
        container.host_key, container.trusted_key = host_key, wanted

    changed = container.host_key is None or container.trusted_key != wanted
    line = f"{host_key} root@{container.config.get('hostname', 'localhost')}"  # as the role reads it from the public key's file
    return Effect(changed, apply, {"host_keys": {host_key.split()[0]: line}})


async def deploy_agent(container: LabContainer, inputs: Inputs) -> Effect:
    """The release is fetched and checked like the real one; the service restarts when anything changed."""
    given, secrets, present = inputs.variables, inputs.secrets, container.agent
    certificate, key = secrets.get("zlh_agent_tls_cert") or None, secrets.get("zlh_agent_tls_key") or None
    if (certificate is None) != (key is None):
        raise TaskFailure("zlh_agent_tls_cert and zlh_agent_tls_key are required together")
    if certificate is not None and key is not None:
        try:
            server_context(certificate, key)
        except ssl.SSLError as error:
            raise TaskFailure(f"the agent did not come up: its certificate and key do not fit: {error.reason}") from error
    if given["zlh_agent_bind"] != container.address:
        raise TaskFailure(f"the agent did not come up: cannot bind {given['zlh_agent_bind']}: the address is not this container's")
    if inputs.agent_port and int(given["zlh_agent_port"]) != inputs.agent_port:
        raise TaskFailure(f"the agent did not answer /health on port {inputs.agent_port} within 30 s: it listens on {given['zlh_agent_port']}")
    version = str(given["zlh_agent_version"])
    if present is None or present.version != version:
        await download(str(given["zlh_agent_url"]), str(given["zlh_agent_sha256"]))
    wanted: dict[str, Any] = {
        "server_id": str(given["zlh_agent_server_id"]),
        "version": version,
        "token": secrets["zlh_agent_token"],
        "previous_token": secrets.get("zlh_agent_previous_token") or None,
        "certificate": certificate,
        "key": key,
        "kind": str(given["zlh_agent_kind"]),
    }
    if present is not None and present.alive and not present.frozen and all(getattr(present, name) == value for name, value in wanted.items()):
        return Effect(False, nothing)

    def apply() -> None:
        if container.agent is None:
            container.agent = LabAgent(**wanted)
            return
        for name, value in wanted.items():
            setattr(container.agent, name, value)
        container.agent.alive, container.agent.frozen = True, False

    return Effect(True, apply)


async def restart_agent(container: LabContainer, inputs: Inputs) -> Effect:
    """A process that was killed or stopped is replaced; the workload goes on. Never without a change, as ``state: restarted``."""
    agent = container.agent
    if agent is None:
        raise TaskFailure("Could not find the requested service zlh-agent: host")

    def apply() -> None:
        agent.alive, agent.frozen = True, False

    return Effect(True, apply)


async def preseed_fabric(container: LabContainer, inputs: Inputs) -> Effect:
    files = [(inputs.variables["fabric_server_jar_url"], inputs.variables["fabric_server_jar_sha256"])]
    files += [(mod["url"], mod["sha256"]) for mod in inputs.variables.get("fabric_server_mods") or []]
    return await _prepare(container, inputs, "game", files, code_server=False)


async def dev_environment(container: LabContainer, inputs: Inputs) -> Effect:
    files = [(runtime["url"], runtime["sha256"]) for runtime in inputs.variables.get("dev_environment_runtimes") or []]
    return await _prepare(container, inputs, "dev", files, code_server=bool(inputs.variables.get("dev_environment_code_server")))


async def _prepare(container: LabContainer, inputs: Inputs, kind: str, files: list[tuple[str, str]], *, code_server: bool) -> Effect:
    agent = container.agent
    if agent is None:
        raise TaskFailure("the agent is not installed: run deploy_agent.yml first")
    if agent.kind != kind:
        raise TaskFailure(f"the agent was installed for a {agent.kind} container, this play prepares a {kind} one")
    fingerprint = hashlib.sha256(json.dumps([dict(inputs.variables), dict(inputs.secrets)], sort_keys=True, default=str).encode()).hexdigest()
    if agent.prepared and agent.prepared_as == fingerprint:
        return Effect(False, nothing)
    for url, checksum in files:
        await download(str(url), str(checksum))

    def apply() -> None:
        assert container.agent is not None
        container.agent.prepared, container.agent.prepared_as = True, fingerprint
        container.agent.code_server = code_server
        if code_server:
            container.agent.autostart = True  # the role enables and starts the unit

    return Effect(True, apply)


async def download(url: str, checksum: str) -> None:
    """Fetches and verifies. The lab has no network: only loopback is reachable. Raises TaskFailure."""
    host = urlsplit(url).hostname or ""
    try:
        reachable = ipaddress.ip_address(host).is_loopback
    except ValueError:
        reachable = False
    if not reachable:
        raise TaskFailure(f"Request failed: {url}: there is no route to {host or 'nowhere'} from a simulated container")
    digest = hashlib.sha256()
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DOWNLOAD_S), trust_env=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise TaskFailure(f"Request failed: HTTP Error {answer.status}: {answer.reason} ({url})")
            async for chunk in answer.content.iter_chunked(65_536):
                digest.update(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TaskFailure(f"Request failed: {url}: {type(error).__name__}") from error
    if digest.hexdigest() != checksum.removeprefix("sha256:").lower():
        raise TaskFailure(f"The checksum for {url} did not match {checksum}; it was {digest.hexdigest()}.")


#: By playbook. One that is not here runs its checks and changes nothing.
EFFECTS: Mapping[str, Callable[[LabContainer, Inputs], Awaitable[Effect]]] = {
    "bootstrap.yml": bootstrap,
    "deploy_agent.yml": deploy_agent,
    "restart_agent.yml": restart_agent,
    "preseed_fabric.yml": preseed_fabric,
    "dev_environment.yml": dev_environment,
}
#: Playbooks that go through the node and need no trust.
THROUGH_NODE = frozenset({"bootstrap.yml", "restart_agent.yml"})
