"""Composition root: settings become clients, and clients become what the parts need. The only place that builds real ones.

Heavy libraries are imported inside the builders, so that the command line starts fast and a process loads only what it uses.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from flows.act.deps import Deps, Identity
from flows.decide import calendar, routing
from flows.domain.event import Event, Route
from flows.domain.ports import Artifact, DnsWriter, PlaybookRunner
from flows.domain.server import Server
from flows.errors import MisconfiguredSetting
from flows.settings import Settings, load
from flows.state import host_keys
from flows.state.database import Database

if TYPE_CHECKING:
    from flows.act.post_migration import Parts
    from flows.act.trial import FrontDoor, Wish
    from flows.clients.engine_setup import EngineSetup
    from flows.clients.gate import NoGate, RedisGate
    from flows.clients.redis_server import RedisServer
    from flows.observe.validation import Lookers


#: The deployments, beside the package.
PREFECT_FILE = Path(__file__).resolve().parents[1] / "prefect.yaml"


def database(settings: Settings) -> Database:
    """The database of the settings; connects on first use. A transaction of a process that stands still ends when its epoch would: what it
    has locked, the epoch's row perhaps, is free by then."""
    group = settings.database
    return Database(group.url.get_secret_value(), busy_timeout_s=group.busy_timeout_s, pool_size=group.pool_size, idle_s=settings.timing.epoch_s)


def holder() -> str:
    """Names this process to people and to leases: host, process, and a random part, since process ids come back."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def router(settings: Settings) -> Callable[[Event, int], Route]:
    """The routing table, as it stands at the operator's hours."""
    hours = calendar_of(settings)
    return lambda event, now: routing.route(event, hours, now)


def calendar_of(settings: Settings) -> calendar.Calendar:
    """The operator's hours."""
    n = settings.notify
    return calendar.Calendar(
        timezone=n.timezone,
        business_days=n.business_days,
        business_from=n.business_from,
        business_to=n.business_to,
        quiet_from=n.quiet_from,
        quiet_to=n.quiet_to,
    )


def runner(settings: Settings, database: Database) -> PlaybookRunner:
    """Ansible, which trusts the host keys that the database holds and no others, or the simulated fleet's stand-in."""
    if settings.ansible.runner == "lab":
        from flows.clients.lab_runner import LabRunner

        return LabRunner(settings.ansible)
    from flows.clients.http import literal_host
    from flows.clients.playbooks import AnsibleRunner

    async def known(server: Server) -> Mapping[str, str]:
        async with database.read() as tx:
            return await host_keys.get(tx, server.id)

    return AnsibleRunner(settings.ansible, host_keys=known, entrance=literal_host("ZLH_PROXMOX__HOST", settings.proxmox.host, 8006)[0])


def gate(settings: Settings) -> RedisGate | NoGate:
    """Redis in front of the epoch row, where one is configured."""
    from flows.clients.gate import NoGate, RedisGate

    return RedisGate(settings.redis) if settings.redis.url.get_secret_value() else NoGate()


def public_key(settings: Settings) -> str:
    """The controller's public SSH key: beside the private one, or a stand-in where the lab needs none."""
    key = settings.ansible.private_key
    if key is None:
        if settings.ansible.runner == "lab":
            return "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA lab"
        raise MisconfiguredSetting("ZLH_ANSIBLE__PRIVATE_KEY", why="is not set", remedy="name the controller's SSH private key")
    path = Path(f"{key}.pub")
    try:
        return path.read_text().strip()
    except OSError as error:
        raise MisconfiguredSetting("ZLH_ANSIBLE__PRIVATE_KEY", why=f"its public half is unreadable: {error}", remedy=f"create {path}") from error


def name_server(settings: Settings) -> DnsWriter:
    """By ``ZLH_DNS__PROVIDER``. Raises MisconfiguredSetting. Cloudflare's library is imported by those alone who use it."""
    if settings.dns.provider == "cloudflare":
        from flows.clients.cloudflare_dns import CloudflareDns

        return CloudflareDns(settings.dns)
    from flows.clients.dns import DnsClient

    return DnsClient(settings.dns)


@asynccontextmanager
async def deps(settings: Settings | None = None) -> AsyncIterator[Deps]:
    """Everything that acting needs; closed at the end."""
    from flows.clients.agent_token import agent_token
    from flows.clients.agents import AgentClient
    from flows.clients.bridge import BridgeClient
    from flows.clients.ca import CertificateAuthority
    from flows.clients.engine import PrefectEngine
    from flows.clients.proxmox import ProxmoxClient

    settings = settings or load()
    authority = CertificateAuthority(settings.agent.ca_dir)

    def identity(server: Server) -> Identity:
        certificate, key = authority.issue(server.id, server.address) if settings.agent.tls else (None, None)
        master = settings.agent.master_secret
        previous = agent_token(master, server.id, server.token_version - 1) if server.token_version > 1 else None
        secret = None if key is None else key if isinstance(key, SecretStr) else SecretStr(key)
        return Identity(agent_token(master, server.id, server.token_version), previous, certificate, secret)

    async with AsyncExitStack() as stack:

        def own(thing: Any) -> Any:
            stack.push_async_callback(thing.close)
            return thing

        entries = own(catalog(settings))

        async def artifact(kind: str, name: str, version: str) -> Artifact:
            found: Artifact = await entries.find(kind, name, version)
            return found

        store = own(database(settings))
        yield Deps(
            settings=settings,
            database=store,
            proxmox=own(ProxmoxClient(settings.proxmox)),
            agents=own(AgentClient(settings.agent)),
            proxy=own(BridgeClient(settings.proxy)),
            dns=own(name_server(settings)),
            engine=own(PrefectEngine(settings.engine)),
            runner=own(runner(settings, store)),
            identity=identity,
            artifact=artifact,
            route=router(settings),
            public_key=lambda: public_key(settings),
            holder=holder(),
        )


@asynccontextmanager
async def lookers(settings: Settings) -> AsyncIterator[Lookers]:
    """What ``zlh validate`` looks with: readers of the database, Proxmox, the engine and Redis."""
    from flows.clients.engine import PrefectEngine
    from flows.clients.proxmox import ProxmoxClient
    from flows.observe.validation import Lookers

    async with AsyncExitStack() as stack:
        store, proxmox, engine = database(settings), ProxmoxClient(settings.proxmox), PrefectEngine(settings.engine)
        redis = redis_server(settings)
        for thing in (store, proxmox, engine, *((redis,) if redis else ())):
            stack.push_async_callback(thing.close)
        yield Lookers(settings, store, proxmox, engine.workers, redis.clients if redis else None, socket.gethostname())


def redis_server(settings: Settings) -> RedisServer | None:
    """Where one is configured."""
    from flows.clients.redis_server import RedisServer

    return RedisServer(settings.redis) if settings.redis.url.get_secret_value() else None


@asynccontextmanager
async def post_migration(settings: Settings, *, run_id: str = "", wish: Wish | None = None) -> AsyncIterator[Parts]:
    """What the flow of that name needs."""
    from flows.act import trial
    from flows.act.post_migration import Parts
    from flows.clients.engine import PrefectEngine

    async with AsyncExitStack() as stack:
        everything = await stack.enter_async_context(deps(settings))
        look = await stack.enter_async_context(lookers(settings))
        setup = await stack.enter_async_context(engine_setup(settings))
        redis, door_keeper, engine = redis_server(settings), gate(settings), PrefectEngine(settings.engine)
        for thing in (*((redis,) if redis else ()), door_keeper, engine):
            stack.push_async_callback(thing.close)

        async def converge() -> None:
            await setup.run(PREFECT_FILE, interval_s=settings.timing.sweep_s)

        def door(token: SecretStr) -> FrontDoor:
            return front_door(settings.model_copy(update={"api": settings.api.model_copy(update={"admin_token": token})}))

        yield Parts(everything, look, door_keeper, redis, converge, engine, door, wish or trial.Wish(), run_id)


def front_door(settings: Settings) -> FrontDoor:
    """Our own API, called with the admin token of the settings."""
    from flows.clients import own_api

    async def call(method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        return await asyncio.to_thread(own_api.call, settings.api, method, path, body)

    return call


@asynccontextmanager
async def engine_setup(settings: Settings) -> AsyncIterator[EngineSetup]:
    """Makes the Prefect server ours, at ``ZLH_ENGINE__HOME``."""
    from flows.clients.engine_setup import EngineSetup

    setup = EngineSetup(settings.engine, settings.engine.home)
    try:
        yield setup
    finally:
        await setup.close()


def catalog(settings: Settings) -> Any:
    """The artifact server's catalog, with its last good copy."""
    from flows.clients.catalog import CatalogClient

    return CatalogClient(settings.artifacts)


@asynccontextmanager
async def dispatcher(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    """What ``report.dispatch.run`` takes beside the settings."""
    from flows.clients.engine import PrefectEngine
    from flows.clients.notifier import DiscordNotifier

    store, engine, notifier = database(settings), PrefectEngine(settings.engine), DiscordNotifier(settings.notify)
    try:
        yield {"database": store, "engine": engine, "notifier": notifier}
    finally:
        await engine.close()
        await notifier.close()
        await store.close()


@asynccontextmanager
async def watchdog(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    """What ``report.watchdog.check`` takes beside the settings."""
    from flows.clients.notifier import DiscordNotifier

    store, notifier = database(settings), DiscordNotifier(settings.notify)
    try:
        yield {"database": store, "notifier": notifier}
    finally:
        await notifier.close()
        await store.close()
