"""``proxy_registration``: an active, ready game with its edge open whose registration is missing or wrong. Repair: register."""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide.remedies import mend
from flows.decide.sightings import observation_of, told_by
from flows.decide.stale import matches
from flows.decide.wanted import publishable
from flows.domain import readiness
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.server import Server
from flows.domain.snapshot import Snapshot
from flows.domain.sources import ProxyView

SOURCES = frozenset({"database", "proxy"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    if not isinstance(snapshot.proxy, Known):
        return
    view, billing = snapshot.proxy.value, snapshot.fleet.billing
    for server in snapshot.fleet.servers.values():
        if not publishable(server, billing.get(server.customer_id)):
            continue
        wrong = _wrong(server, view)
        if wrong and readiness.may_publish(observation_of(snapshot, server.id), snapshot.now):
            yield Finding(
                check=Check.PROXY_REGISTRATION,
                subject=server.id,
                summary=f"{server.name}: {wrong}",
                level=1,
                action=Action.REGISTER_PROXY,
                server_id=server.id,
                host=server.node,
                sources=SOURCES | told_by(snapshot, server.id),
                evidence={"name": server.name, "address": server.address, "port": server.game_port, "problem": wrong},
                remedy=mend(snapshot, f"zlh restart {server.name}"),
            )


def _wrong(server: Server, view: ProxyView) -> str:
    present = view.registrations.get(server.name)
    if present is None:
        return "not registered with the proxy"
    return "" if matches(present, server) else f"registered as {present.address}:{present.port}"


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or not isinstance(snapshot.proxy, Known) or not publishable(server, snapshot.fleet.billing.get(server.customer_id)):
        return ""
    known = readiness.fresh(observation_of(snapshot, subject), snapshot.now)
    return "readiness unknown" if not known and _wrong(server, snapshot.proxy.value) else ""
