"""``zlh doctor``: is everything there that the controller needs, with enough rights, the right version and the right time?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

from flows import bootstrap
from flows.act.deps import Deps
from flows.clients import own_api
from flows.clients.ca import LEAF_DAYS, load_bundle
from flows.clients.engine import PrefectEngine
from flows.clients.gate import RedisGate
from flows.clients.notifier import SETTING_OF
from flows.domain.known import Known
from flows.domain.server import Desired, ServerState
from flows.errors import AutomationError, Temporary
from flows.settings import Settings
from flows.state import migrate, outbox, servers
from flows.state.database import Database, ping

#: Clocks may differ by this much, seconds.
SKEW_S = 5.0
LIMIT_S = 15.0
#: The setting that says where a part is.
WHERE = {
    "database": "ZLH_DATABASE__URL",
    "proxmox": "ZLH_PROXMOX__HOST",
    "proxy": "ZLH_PROXY__URL",
    "dns": "ZLH_DNS__SERVER",
    "engine": "ZLH_ENGINE__URL",
    "artifacts": "ZLH_ARTIFACTS__URL",
    "api": "ZLH_API__PUBLIC_BIND",
    "redis": "ZLH_REDIS__URL",
}


@dataclass(frozen=True)
class Check:
    """``ok`` None: it could not be looked at."""

    part: str
    ok: bool | None
    says: str
    remedy: str = ""


async def examine(settings: Settings) -> list[Check]:
    """All of it, side by side."""
    async with bootstrap.deps(settings) as deps:
        parts: dict[str, Callable[[], Awaitable[list[Check]]]] = {
            "database": lambda: _database(deps),
            "proxmox": lambda: _proxmox(deps),
            "proxy": lambda: _proxy(deps),
            "dns": lambda: _dns(deps),
            "engine": lambda: _engine(deps),
            "artifacts": lambda: _artifacts(deps),
            "agents": lambda: _agents(deps),
            "agents' authority": lambda: _authority(settings),
            "api": lambda: _api(settings),
            "redis": lambda: _redis(settings),
            "channels": lambda: channels(deps.database),
        }
        found = await asyncio.gather(*(_within(name, look) for name, look in parts.items()))
    return [check for checks in (*found, _configured(settings)) for check in checks]


async def _within(name: str, look: Callable[[], Awaitable[list[Check]]]) -> list[Check]:
    try:
        async with asyncio.timeout(LIMIT_S):
            return await look()
    except AutomationError as error:
        return [Check(name, None if isinstance(error, Temporary) else False, f"{error.what} · {error.why}", error.remedy)]
    except TimeoutError:
        return [Check(name, None, f"no answer in {LIMIT_S:g} s", f"check {WHERE.get(name, 'its settings')} and the network in between")]


async def _database(deps: Deps) -> list[Check]:
    url = deps.settings.database.url.get_secret_value()
    skew = await ping(deps.database) / 1000 - time.time()
    at, head = await migrate.current(url), migrate.head()
    return [
        Check("database", True, f"{deps.database.url.get_backend_name()} answers"),
        Check("database schema", at == head, f"at {at or 'none'}, wanted {head}", "" if at == head else "zlh up migrates; or: zlh migrate"),
        Check("database clock", abs(skew) < SKEW_S, f"{skew:+.1f} s against this machine", "" if abs(skew) < SKEW_S else "run chrony on both"),
    ]


async def _proxmox(deps: Deps) -> list[Check]:
    facts = await deps.proxmox.doctor()
    missing = facts.get("rights_missing") or ()
    listed = ", ".join(str(m) for m in missing) if isinstance(missing, list | tuple) else str(missing)
    skew = float(str(facts.get("clock_difference_s") or 0.0))
    return [
        Check("proxmox", True, f"version {facts.get('version')}"),
        Check(
            "proxmox rights", not missing, f"missing: {listed}" if missing else "all that are needed", "grant them to the token" if missing else ""
        ),
        Check("proxmox quorum", bool(facts.get("quorate", True)), "quorate" if facts.get("quorate", True) else "not quorate"),
        Check("proxmox clock", abs(skew) < SKEW_S, f"{skew:+.1f} s against this machine", "" if abs(skew) < SKEW_S else "run chrony on both"),
    ]


async def _proxy(deps: Deps) -> list[Check]:
    view = await deps.proxy.view()
    return [Check("proxy bridge", True, f"{len(view.registrations)} backends registered, up for {view.uptime_s:.0f} s")]


async def _dns(deps: Deps) -> list[Check]:
    view = await deps.dns.zone()
    return [Check("dns", True, f"zone {deps.settings.dns.zone}: {len(view.records)} names, {len(view.owners)} of them ours")]


async def _engine(deps: Deps) -> list[Check]:
    url, wanted = deps.settings.engine.url, metadata.version("prefect")
    engine = PrefectEngine(deps.settings.engine)
    try:
        version, workers = await engine.version(), [w.name for w in await engine.workers() if w.online]
    finally:
        await engine.close()
    return [
        Check("engine", version == wanted, f"Prefect {version} at {url}, wanted {wanted}", "" if version == wanted else "run one version everywhere"),
        Check("engine's worker", bool(workers), ", ".join(workers) or "none is online", "" if workers else "zlh up starts one"),
    ]


async def _artifacts(deps: Deps) -> list[Check]:
    await deps.artifact("agent", "zlh-agent", "")
    return [Check("artifacts", True, "the catalog has a promoted agent")]


async def _agents(deps: Deps) -> list[Check]:
    async with deps.database.read() as tx:
        known = await servers.list_(tx, state=ServerState.ACTIVE)
    asked = [s for s in known if s.desired is Desired.RUNNING]
    if not asked:
        return [Check("agents", True, "no server that should answer")]
    answers = await deps.agents.probe(asked)
    silent = sorted(s.name for s in asked if not isinstance(answers.get(s.id), Known))
    remedy = f"zlh explain {silent[0]}" if silent else ""
    return [Check("agents", not silent, f"{len(asked) - len(silent)} of {len(asked)} answer", remedy)]


async def _authority(settings: Settings) -> list[Check]:
    directory, today = settings.agent.ca_dir, datetime.now(UTC)
    left = (load_bundle(directory)[0].not_valid_after_utc - today).days
    long_enough = left > LEAF_DAYS
    return [Check("agents' authority", long_enough, f"{directory} ends in {left} days", "" if long_enough else "zlh ca rotate")]


async def _api(settings: Settings) -> list[Check]:
    bind = settings.api.public_bind
    await asyncio.to_thread(own_api.call, settings.api, "GET", "/healthz")
    return [Check("api", True, f"answers at {bind}")]


async def _redis(settings: Settings) -> list[Check]:
    if not settings.redis.url.get_secret_value():
        return [Check("redis", True, "not configured: the database alone elects the sweep")]
    gate = RedisGate(settings.redis, name="doctor")
    try:
        passed = await gate.enter("doctor", 1.0)
        await gate.leave("doctor")
    finally:
        await gate.close()
    if passed is None:
        return [Check("redis", None, "no answer: sweeps go on by the database alone", "check ZLH_REDIS__URL")]
    return [Check("redis", True, "answers")]


async def channels(database: Database) -> list[Check]:
    """What became of the last messages: a webhook that is set may still lead nowhere."""
    async with database.read() as tx:
        troubles = await outbox.troubles(tx)
    return [
        Check(
            f"channel {channel}",
            False,
            f"{trouble.messages} {'message' if trouble.messages == 1 else 'messages'} not delivered, the last: {trouble.error}",
            f"correct ZLH_NOTIFY__{SETTING_OF[channel].upper()} or what the error names, and restart zlh dispatch: what waits goes out by itself",
        )
        for channel, trouble in sorted(troubles.items())
    ]


def _configured(settings: Settings) -> list[Check]:
    """What no peer can tell: whether it was set at all."""
    n = settings.notify
    secret = bool(settings.ansible.forwarding_secret.get_secret_value())
    unset = [k for k in ("critical", "repairs", "billing", "provisioning", "health", "audit") if not getattr(n, k).get_secret_value()]
    variables = ", ".join(f"ZLH_NOTIFY__{k.upper()}" for k in unset)
    return [
        Check(
            "forwarding secret",
            secret,
            "set" if secret else "not set: no game server can be made",
            "" if secret else "set ZLH_ANSIBLE__FORWARDING_SECRET",
        ),
        Check("notifications", not unset, f"no webhook for {variables}" if unset else "six webhooks configured", f"set {variables}" if unset else ""),
    ]
