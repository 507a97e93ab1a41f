"""What the listings list: one entry per noun, with its query and how a row reads. Plain SQL, for :mod:`flows.state.quick`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.cli import output
from flows.domain.finding import Check, Outcome
from flows.domain.lease import LeaseKind
from flows.domain.operation import OperationKind, OperationState, Queue
from flows.domain.server import BillingState, ServerState

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Noun:
    """``sql`` is a select without ``WHERE``; ``key`` identifies a row, ``names`` are other columns by which a person may name one.
    ``filters``: option → column; ``choices``: option → all that the column can hold, where that is known. ``alive`` hides what is over
    unless ``--all`` is given. ``people`` turns a row into table cells."""

    name: str
    help: str
    sql: str
    key: str
    order: str
    columns: Sequence[str]
    people: Callable[[Row, int, bool], Mapping[str, Any]]
    empty: str
    at: str = ""
    names: Sequence[str] = ()
    filters: Mapping[str, str] = field(default_factory=dict)
    alive: str = ""
    json: Sequence[str] = ()
    booleans: Sequence[str] = ()
    numbered: bool = False
    choices: Mapping[str, Iterable[str]] = field(default_factory=dict)


def _server(row: Row, now: int, utc: bool) -> dict[str, Any]:
    ready = {True: "yes", False: "no", None: "?"}[row["ready"]]
    running = f"{row['operation']} {row['step'] or 'queued'}" if row["operation"] else ""
    return {**row, "ct": row["vmid"], "type": row["ctype"], "ready": ready, "operation": running}


def _finding(row: Row, now: int, utc: bool) -> dict[str, Any]:
    over = output.moment(row["closed_at"], utc)
    reason = f"over {over}" if over else row["reason"]
    subject = row["server"] or row["subject"]
    since = output.moment(row["opened_at"], utc)
    return {**row, "id": short(row), "subject": subject, "since": since, "not repaired": reason, "to mend": row["remedy"]}


def _repair(row: Row, now: int, utc: bool) -> dict[str, Any]:
    took = output.duration(row["outcome_at"] - row["intent_at"]) if row["outcome_at"] else ""
    at, subject = output.moment(row["intent_at"], utc), row["server"] or row["subject"]
    return {**row, "id": short(row), "at": at, "subject": subject, "outcome": row["outcome"] or "under way", "took": took}


def _operation(row: Row, now: int, utc: bool) -> dict[str, Any]:
    error = row["error"] or {}
    took = output.duration((row["finished_at"] or now) - row["created_at"])
    why = "" if row["state"] == "succeeded" else error.get("why") or error.get("what", "")
    return {**row, "id": short(row), "at": output.moment(row["created_at"], utc), "took": took, "why": why}


def _lease(row: Row, now: int, utc: bool) -> dict[str, Any]:
    end = row["expires_at"]
    left = "free" if end is None else "expired" if end <= now else output.duration(end - now)
    return {**row, "of": row["server"] or row["subject"], "taken": output.moment(row["taken_at"], utc), "left": left}


def _vmid(row: Row, now: int, utc: bool) -> dict[str, Any]:
    return {**row, "of": row["server"], "since": output.moment(row["since_at"], utc), "until": output.moment(row["until"], utc)}


def _host(row: Row, now: int, utc: bool) -> dict[str, Any]:
    templates = ", ".join(f"{flavor}={vmid}" for flavor, vmid in sorted(row["templates"].items()))
    return {**row, "takes new": "yes" if row["open"] else "no", "templates": templates}


def _token(row: Row, now: int, utc: bool) -> dict[str, Any]:
    state = "revoked" if row["revoked_at"] else "expired" if row["expires_at"] and row["expires_at"] <= now else "valid"
    return {**row, "id": short(row), "state": state, "expires": output.moment(row["expires_at"], utc) or "never"}


def _line(row: Row, now: int, utc: bool) -> dict[str, Any]:
    detail = " ".join(f"{k}={v}" for k, v in row["detail"].items() if v not in (None, ""))
    subject = f"server {row['server']}" if row["server"] else row["subject"]
    return {**row, "at": output.moment(row["at"], utc), "subject": subject, "detail": detail}


def _backup(row: Row, now: int, utc: bool) -> dict[str, Any]:
    verified = output.moment(row["verified_at"], utc) or "no"
    return {**row, "id": short(row), "at": output.moment(row["created_at"], utc), "verified": verified, "size": row["size_bytes"]}


def _customer(row: Row, now: int, utc: bool) -> dict[str, Any]:
    return {**row, "since": output.moment(row["created_at"], utc)}


def _review(row: Row, now: int, utc: bool) -> dict[str, Any]:
    state = row["decision"] or ("expired" if row["expires_at"] <= now else "waits")
    return {
        **row,
        "id": short(row),
        "asked": output.moment(row["requested_at"], utc),
        "expires": output.moment(row["expires_at"], utc),
        "state": state,
    }


def _breaker(row: Row, now: int, utc: bool) -> dict[str, Any]:
    return {**row, "subject": row["server"] or row["subject"], "last": output.moment(row["last_at"], utc), "host": row["node"]}


def short(row: Row) -> str:
    """The end of an id: its beginning is a time, which neighbours share."""
    return str(row["id"])[-8:]


NOUNS: Sequence[Noun] = (
    Noun(
        "servers", "What customers own.",
        """SELECT s.id, s.name, s.ctype, s.flavor, s.version, s.vmid, s.node, s.address, s.state, s.desired, s.edge, s.memory_mb, s.cores,
                  s.disk_gb, c.name AS customer, b.ready, b.reachable, b.players, b.at AS observed_at, o.kind AS operation, o.step,
                  s.created_at, s.activated_at, s.deleted_at
           FROM servers s JOIN customers c ON c.id = s.customer_id
           LEFT JOIN operations o ON o.live_server = s.id LEFT JOIN observations b ON b.server_id = s.id""",
        "s.id", "s.name", ("name", "customer", "type", "ct", "node", "address", "state", "desired", "ready", "operation"), _server,
        "no servers: zlh create NAME --customer CUSTOMER", "s.created_at", ("s.name",),
        {"state": "s.state", "host": "s.node", "customer": "c.name"}, "s.state <> 'deleted'", booleans=("ready", "reachable"),
        choices={"state": ServerState},
    ),
    Noun(
        "findings", "What is not as it should be, and why it is not being repaired.",
        """SELECT e.id, e."check", e.subject, s.name AS server, e.summary, e.reason, e.severity, e.remedy, e.evidence, e.opened_at,
                  e.last_seen_at, e.escalated_at, e.closed_at
           FROM episodes e LEFT JOIN servers s ON s.id = e.server_id""",
        "e.id", "e.opened_at DESC", ("id", "check", "subject", "since", "not repaired", "summary", "to mend"), _finding,
        "no open findings", "e.opened_at", (), {"check": 'e."check"', "server": "s.name", "reason": "e.reason"}, "e.closed_at IS NULL",
        json=("evidence",), choices={"check": Check},
    ),
    Noun(
        "repairs", "What the controller did.",
        """SELECT r.id, r."check", r.action, r.subject, s.name AS server, r.host, r.level, r.counted, r.operation_id, r.epoch, r.intent_at,
                  r.outcome, r.outcome_at, r.detail
           FROM repairs r LEFT JOIN servers s ON s.id = r.server_id""",
        "r.id", "r.intent_at DESC", ("id", "at", "check", "action", "subject", "level", "outcome", "took"), _repair,
        "no repairs", "r.intent_at", (), {"outcome": "r.outcome", "check": 'r."check"', "host": "r.host", "server": "s.name"}, booleans=("counted",),
        choices={"outcome": Outcome, "check": Check},
    ),
    Noun(
        "operations", "Orders, and how far they are.",
        """SELECT o.id, o.kind, o.state, s.name AS server, o.step, o.attempt, o.attempt_state, o.claimed, o.undo_failures, o.queue, o.actor,
                  o.created_at, o.started_at, o.progress_at, o.deadline_at, o.finished_at, o.error
           FROM operations o JOIN servers s ON s.id = o.server_id""",
        "o.id", "o.created_at DESC", ("id", "at", "kind", "server", "state", "step", "attempt", "took", "why"), _operation,
        "no operations", "o.created_at", (), {"state": "o.state", "kind": "o.kind", "server": "s.name", "queue": "o.queue"}, json=("error",),
        choices={"state": OperationState, "kind": OperationKind, "queue": Queue},
    ),
    Noun(
        "leases", "Who may act on what now.",
        """SELECT l.subject, s.name AS server, l.kind, l.holder, l.operation_id, l.reason, l.token, NULLIF(l.taken_at, 0) AS taken_at,
                  NULLIF(l.heartbeat_at, 0) AS heartbeat_at, NULLIF(l.expires_at, 0) AS expires_at
           FROM leases l LEFT JOIN servers s ON s.id = l.subject""",
        "l.subject", "l.taken_at", ("of", "kind", "holder", "taken", "left", "token", "reason"), _lease,
        "no lease is held", "l.taken_at", ("s.name",), {"kind": "l.kind", "server": "s.name"}, "l.holder IS NOT NULL",
        choices={"kind": LeaseKind},
    ),
    Noun(
        "hosts", "Proxmox nodes that take servers.",
        'SELECT n.name, n."open", n.memory_mb, n.disk_gb, n.cores, n.storage, n.bridge, n.templates FROM nodes n',
        "n.name", "n.name", ("name", "takes new", "memory_mb", "disk_gb", "cores", "storage", "bridge", "templates"), _host,
        "no hosts: zlh hosts add", json=("templates",), booleans=("open",),
    ),
    Noun(
        "vmids", "VMIDs that are not free: reserved, waiting after their release, or burnt.",
        """SELECT v.vmid, v.state, s.name AS server, v.server_id, v.since AS since_at, v.until, v.reason
           FROM vmids v LEFT JOIN servers s ON s.id = v.server_id""",
        "v.vmid", "v.vmid", ("vmid", "state", "of", "since", "until", "reason"), _vmid,
        "no VMID is taken", "v.since", (), {"state": "v.state", "server": "s.name"}, numbered=True,
        choices={"state": ("reserved", "quarantined", "burnt")},
    ),
    Noun(
        "tokens", "Credentials of the API.",
        """SELECT k.id, k.role, c.name AS customer, k.label, k.created_at, k.expires_at, k.revoked_at
           FROM tokens k LEFT JOIN customers c ON c.id = k.customer_id""",
        "k.id", "k.created_at DESC", ("id", "role", "customer", "label", "state", "expires"), _token,
        "no tokens: zlh token create", "k.created_at", (), {"role": "k.role", "customer": "c.name"}, "k.revoked_at IS NULL",
        choices={"role": ("customer", "admin")},
    ),
    Noun(
        "audit", "Who did what: append-only.",
        """SELECT a.id, a.at, a.actor, a.action, a.subject, s.name AS server, a.operation_id, a.detail
           FROM audit a LEFT JOIN servers s ON s.id = a.server_id""",
        "a.id", "a.id DESC", ("id", "at", "actor", "action", "subject", "detail"), _line,
        "nothing was done yet", "a.at", (), {"actor": "a.actor", "action": "a.action", "server": "s.name"}, json=("detail",),
        numbered=True,
    ),
    Noun(
        "backups", "Copies, and which were verified.",
        """SELECT b.id, s.name AS server, b.type, b.reason, b.created_at, b.size_bytes, b.sha256, b.location, b.verified_at
           FROM backups b JOIN servers s ON s.id = b.server_id""",
        "b.id", "b.created_at DESC", ("id", "at", "server", "type", "size", "verified", "location"), _backup,
        "no backups", "b.created_at", (), {"server": "s.name", "type": "b.type"},
    ),
    Noun(
        "customers", "Who owns servers.",
        """SELECT c.id, c.name, c.plan, c.billing, c.created_at,
                  (SELECT COUNT(*) FROM servers s WHERE s.customer_id = c.id AND s.live_name IS NOT NULL) AS servers
           FROM customers c""",
        "c.id", "c.name", ("name", "plan", "billing", "servers", "since", "id"), _customer,
        "no customers: zlh customers add NAME", "c.created_at", ("c.name",), {"billing": "c.billing", "plan": "c.plan"},
        choices={"billing": BillingState},
    ),
    Noun(
        "reviews", "Plans that wait for a person.",
        """SELECT r.id, s.name AS server, r."check", r.action, r.plan_hash, r.plan, r.requested_by, r.requested_at, r.expires_at, r.decided_by,
                  r.decided_at, r.decision
           FROM reviews r LEFT JOIN servers s ON s.id = r.server_id""",
        "r.id", "r.requested_at DESC", ("id", "server", "check", "action", "asked", "expires", "state"), _review,
        "no review waits", "r.requested_at", (), {"server": "s.name", "check": 'r."check"'}, "r.decided_at IS NULL AND r.expires_at > :now",
        json=("plan",), choices={"check": Check},
    ),
    Noun(
        "breakers", "What automation leaves alone after failed repairs.",
        """SELECT x.id, x.id AS subject, s.name AS server, COALESCE(s.node, x.host) AS node, x.attempts, x.first_at, x.last_at
           FROM (SELECT COALESCE(r.server_id, r.subject) AS id, MAX(r.host) AS host, COUNT(*) AS attempts, MIN(r.intent_at) AS first_at,
                        MAX(r.intent_at) AS last_at
                 FROM repairs r WHERE r.counted AND r.intent_at > :now - :window GROUP BY COALESCE(r.server_id, r.subject)) x
           LEFT JOIN servers s ON s.id = x.id""",
        "x.id", "x.last_at DESC", ("subject", "host", "attempts", "last"), _breaker,
        "no breaker is open", "x.last_at", ("s.name",), {"host": "COALESCE(s.node, x.host)"}, "x.attempts >= :attempts",
    ),
)  # fmt: skip
BY_NAME = {noun.name: noun for noun in NOUNS}
