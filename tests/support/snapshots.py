"""Snapshots from short descriptions, for case files, unit tests and the benchmark: a healthy fleet, and what differs from it.

A description's keys: ``servers`` (name → what differs; the name is the id), ``copies`` in a server makes ``name-001`` …; ``operations``,
``leases``, ``episodes``, ``repairs``, ``brakes``, ``observations``, ``queues``, ``sources``, ``sightings``, ``backups``, ``billing``,
``unknown`` (source → reason), ``registrations``, ``names`` and ``containers`` (beyond the healthy ones), ``stopped_by`` (VMID → user),
``duplicate_vmids``, ``reviews``, ``nodes``, ``tasks``, ``runs``, ``level``, ``policy``.
In a server ``misses``, ``unready`` and ``stopped`` are how many sweeps before this one saw it so.
Times are relative to now: ``-90s``, ``+10m``, ``-25h``.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from flows.decide.reviews import hash_of
from flows.decide.wanted import fqdn, wanted_records
from flows.domain.agent import AgentStatus, Observation
from flows.domain.finding import BrakeRow, EpisodeRow, Policy, RepairRow, Review
from flows.domain.known import Known, Unknown
from flows.domain.lease import Lease
from flows.domain.operation import Operation, StepRow, engine_key
from flows.domain.server import MAY_RUN, BillingState, ContainerType, Edge, Server, ServerState
from flows.domain.snapshot import BackupFact, Fleet, QueueFact, Snapshot, SourceFact
from flows.domain.sources import Container, EngineRun, EngineView, ProxmoxView, ProxyView, Record, Registration, RunningTask, ZoneView

NOW = 1_800_000_000_000
GENERATION = 7
POLICY = Policy(player_address="203.0.113.7", game_domain="play.example", our_user="zlh@pve!autopilot")
T = TypeVar("T")

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TIME = re.compile(r"([+-])(\d+)([smhd])")
_SERVER = {
    "customer_id": "acme", "ctype": "game", "flavor": "fabric", "version": "1.21", "memory_mb": 4096, "cores": 2, "disk_gb": 20,
    "node": "pve1", "storage": "local", "bridge": "vmbr0", "template_vmid": 9000, "state": "active", "desired": "running",
    "desired_by": "customer", "edge": "open", "token_version": 1, "created_at": "-2h", "activated_at": "-2h",
}  # fmt: skip
_OPERATION = {
    "kind": "provision", "state": "running", "queue": "provisioning", "actor": "customer", "attempt": 1, "attempt_state": "claimed",
    "attempt_at": "-5m", "claimed": 1, "created_at": "-5m", "progress_at": "-1m", "deadline_at": "+55m",
}  # fmt: skip
_LEASE = {"kind": "operation", "holder": "worker-1", "token": 5, "expires_at": "+50s"}
_EPISODE = {"opened_at": "-10m", "last_seen_at": "-1m"}
_REPAIR = {"level": 1, "counted": True, "host": "pve1", "outcome": "repaired", "intent_at": "-10m"}
_REVIEW = {"requested_by": "system:controller", "requested_at": "-1h", "expires_at": "+23h"}
#: What is asked for each check that needs an approval.
_ASKED = {"workload_error": "restart_workload", "container_missing": "restore_backup", "container_orphaned": "destroy_container"}
_BRAKE = {"reason": "looking", "actor": "admin", "created_at": "-1h", "target": ""}
_STATUS = {"version": "1.0", "state": "running", "ready": True}
_OBSERVATION = {"at": "-1m", "reachable": True, "ready": True, "state": "running"}
_STEP = {"direction": "do", "state": "started", "attempt": 1, "started_at": "-1m", "deadline_at": "+5m"}


def at(text: str, now: int = NOW) -> int:
    """``-90s`` → ms."""
    match = _TIME.fullmatch(text)
    assert match, f"not a time: {text!r}"
    sign, number, unit = match.groups()
    return now + (1 if sign == "+" else -1) * int(number) * _UNITS[unit]


def make(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from plain values: enums by value, times by :func:`at`. Unknown keys are refused."""
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    assert not unknown, f"{cls.__name__} has no {sorted(unknown)}"
    return cls(**{k: _coerce(hints[k], v) for k, v in values.items()})


def _coerce(hint: Any, value: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, enum.Enum) and isinstance(value, str):
            return option(value)
        if option is int and isinstance(value, str):
            return at(value)
        if typing.get_origin(option) is frozenset and isinstance(value, list):
            return frozenset(value)
    return value


def policy(**changes: Any) -> Policy:
    return dataclasses.replace(POLICY, **changes)


def snapshot(description: Mapping[str, Any] | None = None, **more: Any) -> Snapshot:
    """The described snapshot; ``policy`` in it only shapes what is healthy."""
    given = {**(description or {}), **more}
    rules = policy(**given.get("policy", {}))
    entries = list(_servers(given.get("servers", {"fern": {}})))
    billing = {"acme": BillingState.ACTIVE, **{k: BillingState(v) for k, v in given.get("billing", {}).items()}}
    unknown = given.get("unknown", {})
    operations = {k: make(Operation, {"id": k, **_OPERATION, **_without(v, "steps")}) for k, v in given.get("operations", {}).items()}
    fleet = _fleet(entries, billing, operations, given)
    return Snapshot(
        now=NOW,
        epoch=1,
        generation=GENERATION,
        fleet=fleet,
        proxmox=Unknown(unknown["proxmox"]) if "proxmox" in unknown else Known(_proxmox(entries, given)),
        proxy=Unknown(unknown["proxy"]) if "proxy" in unknown else Known(_proxy(entries, billing, given)),
        dns=Unknown(unknown["dns"]) if "dns" in unknown else Known(_zone(entries, billing, given, rules)),
        engine=Unknown(unknown["engine"]) if "engine" in unknown else Known(_engine(operations, given)),
        agents={s.id: a for s, d in entries if (a := _agent(s.id, d, unknown.get("agents", ""))) is not None},
    )


def _fleet(
    entries: list[tuple[Server, Mapping[str, Any]]],
    billing: Mapping[str, BillingState],
    operations: Mapping[str, Operation],
    given: Mapping[str, Any],
) -> Fleet:
    observations = {s.id: o for s, d in entries if (o := _before(s.id, d))}
    backups = {s.id: NOW - 3_600_000 for s, _ in entries} | {k: at(v) if v else None for k, v in given.get("backups", {}).items()}
    return Fleet(
        servers={s.id: s for s, _ in entries},
        billing=billing,
        operations=operations,
        steps={
            k: tuple(make(StepRow, {"operation_id": k, **_STEP, **r}) for r in v.get("steps", ())) for k, v in given.get("operations", {}).items()
        },
        leases=_rows(Lease, given.get("leases"), "subject", _LEASE),
        brakes=tuple(make(BrakeRow, {"id": str(i), **_BRAKE, **v}) for i, v in enumerate(given.get("brakes", ()))),
        episodes={k: _open_episode(k, v) for k, v in given.get("episodes", {}).items()},
        repairs=tuple(r for i, v in enumerate(given.get("repairs", ())) for r in _repairs(str(i), v)),
        observations={**observations, **_rows(Observation, given.get("observations"), "server_id", _OBSERVATION)},
        backups={k: BackupFact(k, when) for k, when in backups.items() if when is not None},
        sources=_rows(SourceFact, given.get("sources"), "source", {"since": "-5m"}),
        queues=tuple(make(QueueFact, {"waiting": 0, "oldest_at": None, "progress_at": None, **v}) for v in given.get("queues", ())),
        sightings={**{f"idle:{s.id}": d["stopped"] for s, d in entries if "stopped" in d}, **given.get("sightings", {})},
        max_level=given.get("level", 1),
        reviews=tuple(_reviews(given.get("reviews", ()))),
    )


def _rows(cls: type[T], described: Mapping[str, Any] | None, key: str, defaults: Mapping[str, Any]) -> dict[str, T]:
    return {k: make(cls, {key: k, **defaults, **v}) for k, v in (described or {}).items()}


def _open_episode(key: str, values: Mapping[str, Any]) -> EpisodeRow:
    check, _, subject = key.partition("/")
    return make(EpisodeRow, {"id": key, "check": check, "subject": subject, **_EPISODE, **values})


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in keys}


def _servers(described: Mapping[str, Mapping[str, Any] | None]) -> Iterator[tuple[Server, Mapping[str, Any]]]:
    number = 0
    for name, differs in described.items():
        differs = differs or {}
        copies = differs.get("copies")
        for index in range(copies or 1):
            number += 1
            own = f"{name}-{index + 1:03}" if copies else name
            fields = _without(differs, "copies", "agent", "container", "tags", "registered", "published", "misses", "unready", "stopped", "lock")
            place = {"vmid": 10_000 + number, "address": f"10.{20 + number // 60_000}.{number // 250 % 240}.{number % 250 + 1}"}
            yield make(Server, {"id": own, "name": own, **_SERVER, **place, **fields}), differs


def _reviews(described: Iterable[Mapping[str, Any]]) -> Iterator[Review]:
    """Each with ``evidence``, that of its plan, or ``plan_hash``; of fern's or of the subject's."""
    for number, values in enumerate(described):
        given = {"action": _ASKED[values["check"]], "server_id": values["subject"] if ":" not in values["subject"] else None, **_REVIEW, **values}
        plan = {key: given[key] for key in ("check", "action", "subject", "server_id")} | {"evidence": given.pop("evidence", {})}
        yield make(Review, {"id": f"00000000-0000-7000-8000-{number:012}", "plan": plan, "plan_hash": hash_of(plan), **given})


def _repairs(row: str, values: Mapping[str, Any]) -> Iterator[RepairRow]:
    for index in range(values.get("copies", 1)):
        subject = values["subject"]
        server = {"server_id": subject} if ":" not in subject else {"server_id": None}
        yield make(RepairRow, {"id": f"{row}.{index}", **_REPAIR, **server, **_without(values, "copies")})


def _before(server_id: str, differs: Mapping[str, Any]) -> Observation | None:
    """What the sweep before this one stored."""
    if "misses" not in differs and "unready" not in differs:
        return None
    misses, unready = differs.get("misses", 0), differs.get("unready", 0)
    ready = None if misses else not unready
    return Observation(server_id, NOW - 60_000, reachable=not misses, ready=ready, state=None, misses=misses, unready=unready)


def _agent(server_id: str, differs: Mapping[str, Any], failed: str = "") -> Known[AgentStatus] | Unknown | None:
    """``failed``: why no agent was asked at all."""
    said = differs.get("agent", "ready" if differs.get("state", "active") in ("active", "suspended") else "unasked")
    if said == "unasked":
        return None
    if failed or said == "not_asked":
        return Unknown(f"not asked: {failed or 'no time was left in this sweep'}")
    if said == "silent":
        return Unknown("connect timed out after 3 s")
    if said == "distrusted":
        return Unknown("distrusted: it names another server")
    words: Mapping[str, dict[str, Any]] = {"ready": {}, "not_ready": {"ready": False}, "stopped": {"ready": False, "state": "stopped"}}
    status = words[said] if isinstance(said, str) else said
    return Known(make(AgentStatus, {"server_id": server_id, **_STATUS, **status}))


def _proxmox(entries: list[tuple[Server, Mapping[str, Any]]], given: Mapping[str, Any]) -> ProxmoxView:
    containers = {
        s.vmid: Container(
            s.vmid, s.node, d.get("container", "running"), s.hostname, frozenset({"zlh", *d.get("tags", ())}), d.get("lock"), uptime_s=7_200
        )
        for s, d in entries
        if d.get("container", "missing" if s.state is ServerState.FAILED else "") not in ("missing", "absent")
    }
    containers |= {vmid: make(Container, {"vmid": vmid, "node": "pve1", "status": "running", **c}) for vmid, c in given.get("containers", {}).items()}
    online = {s.node: True for s, _ in entries} | given.get("nodes", {})
    tasks = tuple(RunningTask(**{"upid": "UPID:1", "node": "pve1", "user": "zlh@pve", "vmid": None, **t}) for t in given.get("tasks", ()))
    return ProxmoxView(
        containers,
        online,
        tasks,
        duplicate_vmids=frozenset(given.get("duplicate_vmids", ())),
        last_stop_by=given.get("stopped_by", {}),
        absent=frozenset(s.vmid for s, d in entries if d.get("container") == "absent"),
    )


def _on_edge(server: Server, billing: Mapping[str, BillingState]) -> bool:
    good = server.state is ServerState.ACTIVE and server.ctype is ContainerType.GAME and server.edge is Edge.OPEN
    return good and billing.get(server.customer_id) in MAY_RUN


def _proxy(entries: list[tuple[Server, Mapping[str, Any]]], billing: Mapping[str, BillingState], given: Mapping[str, Any]) -> ProxyView:
    found: dict[str, Registration] = {}
    for server, differs in entries:
        how = differs.get("registered", _on_edge(server, billing))
        if how is True:
            found[server.name] = Registration(server.name, server.address, server.game_port)
        elif how:
            address, _, port = how.partition(":")
            found[server.name] = Registration(server.name, address, int(port))
    for name, where in given.get("registrations", {}).items():
        address, _, port = where.partition(":")
        found[name] = Registration(name, address, int(port))
    return ProxyView(found, 600.0)


def _zone(entries: list[tuple[Server, Mapping[str, Any]]], billing: Mapping[str, BillingState], given: Mapping[str, Any], rules: Policy) -> ZoneView:
    records: dict[str, tuple[Record, ...]] = {}
    owners: dict[str, str] = {}
    for server, differs in entries:
        how = differs.get("published", _on_edge(server, billing))
        if not how:
            continue
        for record in wanted_records(server, rules):
            records[record.name] = (*records.get(record.name, ()), record if how is True else dataclasses.replace(record, value=how))
        owners[fqdn(server, rules)] = server.id
    for name, entry in given.get("names", {}).items():
        records[name] = tuple(Record(name, rtype, value) for rtype, value in entry.items() if rtype != "owner")
        if "owner" in entry:
            owners[name] = entry["owner"]
        else:
            owners.pop(name, None)
    return ZoneView(records, owners)


def _engine(operations: Mapping[str, Operation], given: Mapping[str, Any]) -> EngineView:
    runs: dict[str, EngineRun] = {}
    for name, state in given.get("runs", {}).items():
        operation, _, attempt = name.partition(":")
        key = engine_key(GENERATION, operation, int(attempt or operations[operation].attempt))
        runs[key] = EngineRun(f"run-{operation}", key, state, state in ("Completed", "Failed", "Crashed", "Cancelled"))
    return EngineView(runs)
