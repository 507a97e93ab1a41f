"""``zlh doctor``: is everything there that the controller needs, with enough rights, the right version and the right time?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from flows import bootstrap
from flows.act.deps import Deps
from flows.errors import AutomationError, Temporary
from flows.settings import Settings
from flows.state import migrate
from flows.state.database import ping

#: Clocks may differ by this much, seconds.
SKEW_S = 5.0
LIMIT_S = 15.0


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
        }
        found = await asyncio.gather(*(_within(name, look) for name, look in parts.items()))
    return [check for checks in (*found, _notify(settings)) for check in checks]


async def _within(name: str, look: Callable[[], Awaitable[list[Check]]]) -> list[Check]:
    try:
        async with asyncio.timeout(LIMIT_S):
            return await look()
    except AutomationError as error:
        return [Check(name, None if isinstance(error, Temporary) else False, f"{error.what} · {error.why}", error.remedy)]
    except TimeoutError:
        return [Check(name, None, f"no answer in {LIMIT_S:g} s")]


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
    await deps.engine.runs(["0:doctor:0"])
    return [Check("engine", True, f"Prefect answers at {deps.settings.engine.url}")]


async def _artifacts(deps: Deps) -> list[Check]:
    await deps.artifact("agent", "zlh-agent", "")
    return [Check("artifacts", True, "the catalog has a promoted agent")]


def _notify(settings: Settings) -> list[Check]:
    n = settings.notify
    unset = [k for k in ("critical", "repairs", "billing", "provisioning", "health", "audit") if not getattr(n, k).get_secret_value()]
    variables = ", ".join(f"ZLH_NOTIFY__{k.upper()}" for k in unset)
    return [
        Check("notifications", not unset, f"no webhook for {variables}" if unset else "six webhooks configured", f"set {variables}" if unset else "")
    ]
