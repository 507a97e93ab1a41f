"""What the database says, as of its last commit, read by plain SQL beside the product: the invariants' own view. Refreshed by table."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flows.simulate.database import EPOCH_MS
from flows.simulate.loop import Process

#: What is over for longer than this, nothing asks for: no process lives, and no call is under way, for so long.
REMEMBERED_MS = 4 * 3_600_000
#: Holders that are remembered before somebody looks whose time is over.
ROOM = 500


@dataclass(frozen=True, slots=True)
class Lease:
    subject: str
    token: int
    holder: str | None
    kind: str | None
    operation_id: str | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class ServerRow:
    id: str
    name: str
    ctype: str
    node: str
    vmid: int
    address: str
    state: str
    edge: str
    desired: str
    billing: str
    port: int

    @property
    def lives(self) -> bool:
        return self.state not in ("deleted", "failed")

    @property
    def published(self) -> bool:
        """Whether players may be sent there, readiness apart."""
        return self.state == "active" and self.ctype == "game" and self.edge == "open" and self.billing in ("active", "past_due")


@dataclass(slots=True)
class Intent:
    """A repair as it was committed; ``seen`` is the virtual time of that commit, ``level_then`` the level that was allowed."""

    id: str
    check: str
    action: str
    subject: str
    server_id: str | None
    host: str | None
    level: int
    epoch: int
    intent_at: int
    operation_id: str | None
    lease_subject: str | None
    seen: float
    level_then: int
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Review:
    """A plan that a person must decide on."""

    id: str
    check: str
    action: str
    subject: str
    decision: str | None
    expires_at: int


@dataclass(slots=True)
class Change:
    """The end of a holder's time: at this virtual time another token stood in the row, or nobody held it."""

    at: float
    token: int
    paused_s: float


@dataclass
class Ledger:
    reader: sqlite3.Connection
    clock: Callable[[], float]
    now_ms: Callable[[], int]
    leases: dict[str, Lease] = field(default_factory=dict)
    #: (holder, subject) → the token under which it works, and when it lost it.
    held: dict[tuple[str, str], int] = field(default_factory=dict)
    lost: dict[tuple[str, str], float] = field(default_factory=dict)
    taken: dict[str, float] = field(default_factory=dict)
    brakes: dict[str, tuple[str, str, float, int | None]] = field(default_factory=dict)
    level: int = 1
    epoch: tuple[int, str | None] = (0, None)
    servers: dict[str, ServerRow] = field(default_factory=dict)
    live: dict[str, str] = field(default_factory=dict)  # server id → its live operation's state
    intents: dict[str, Intent] = field(default_factory=dict)
    fresh: list[Intent] = field(default_factory=list)
    closed: list[Intent] = field(default_factory=list)
    #: Subjects whose lease this commit took from somebody who still had it.
    stolen: list[str] = field(default_factory=list)
    #: Id → what was asked and how far its decision is; ``used``: the approvals that this commit used up.
    reviews: dict[str, Review] = field(default_factory=dict)
    used: list[Review] = field(default_factory=list)
    _last: int = 0
    _room: int = ROOM

    def refresh(self, process: Process | None, tables: frozenset[str]) -> None:
        """``fresh`` and ``closed`` hold the repairs that this commit began and ended."""
        self.fresh, self.closed, self.stolen, self.used = [], [], [], []
        if "reviews" in tables:
            self._reviews()
        if "leases" in tables:
            self._leases()
        if "brakes" in tables:
            self._brakes()
        if "control" in tables:
            row = self.reader.execute("SELECT value FROM control WHERE name = 'repair_level'").fetchone()
            self.level = 1 if row is None else int(row[0])
        if "epochs" in tables:
            row = self.reader.execute("SELECT epoch, holder FROM epochs").fetchone()
            if row is not None:
                self.epoch = (row[0], row[1])
                if process is not None and row[1] == process.holder:
                    process.told["epoch"] = row[0]
        if "servers" in tables or "customers" in tables:
            query = (
                "SELECT s.id, s.name, s.ctype, s.node, s.vmid, s.address, s.state, s.edge, s.desired, c.billing, s.game_port"
                " FROM servers s JOIN customers c ON c.id = s.customer_id WHERE s.state NOT IN ('deleted')"
            )
            self.servers = {row[0]: ServerRow(*row) for row in self.reader.execute(query)}
        if "operations" in tables:
            self.live = dict(self.reader.execute("SELECT live_server, state FROM operations WHERE live_server IS NOT NULL").fetchall())
        if "repairs" in tables:
            self._repairs()

    def _leases(self) -> None:
        at = self.clock()
        for row in self.reader.execute("SELECT subject, token, holder, kind, operation_id, expires_at FROM leases"):
            lease, before = Lease(*row), self.leases.get(row[0])
            if before is not None and before.token == lease.token and before.holder == lease.holder:
                self.leases[row[0]] = lease
                continue
            if before is not None and before.holder is not None:
                self.lost[before.holder, lease.subject] = at
                if lease.holder not in (None, before.holder) and before.expires_at > self.now_ms() + 1000:
                    self.stolen.append(lease.subject)
            if lease.holder is not None:
                self.held[lease.holder, lease.subject] = lease.token
                self.lost.pop((lease.holder, lease.subject), None)
                self.taken[lease.subject] = at
            self.leases[row[0]] = lease
        if len(self.held) > self._room:
            old = at - REMEMBERED_MS / 1000
            for key in [key for key, when in self.lost.items() if when < old]:
                del self.lost[key]
                self.held.pop(key, None)
            self._room = max(ROOM, 2 * len(self.held))

    def _brakes(self) -> None:
        rows = self.reader.execute('SELECT id, scope, target, "until" FROM brakes WHERE lifted_at IS NULL').fetchall()
        present = {row[0]: row for row in rows}
        self.brakes = {k: v for k, v in self.brakes.items() if k in present}
        for id_, scope, target, until in present.values():
            self.brakes.setdefault(id_, (scope, target, self.clock(), until))

    def _reviews(self) -> None:
        query = 'SELECT id, "check", action, plan, decision, expires_at FROM reviews WHERE expires_at > ?'
        for id_, check, action, plan, decision, expires_at in self.reader.execute(query, (self.now_ms() - REMEMBERED_MS,)):
            before = self.reviews.get(id_)
            subject = before.subject if before is not None else str(json.loads(plan).get("subject", ""))
            review = Review(id_, check, action, subject, decision, expires_at)
            if before is not None and before.decision == "approved" and decision == "carried_out" and expires_at > self.now_ms():
                self.used.append(review)
            self.reviews[id_] = review

    def _repairs(self) -> None:
        query = (
            'SELECT rowid, id, "check", action, subject, server_id, host, level, epoch, intent_at, operation_id, lease_subject'
            " FROM repairs WHERE rowid > ? ORDER BY rowid"
        )
        for row in self.reader.execute(query, (self._last,)):
            self._last = row[0]
            intent = Intent(*(*row[1:], self.clock(), self.level))
            self.intents[intent.id] = intent
            self.fresh.append(intent)
        waiting = [i.id for i in self.intents.values() if i.outcome is None]
        if not waiting:
            return
        marks = ",".join("?" * len(waiting))
        for id_, outcome in self.reader.execute(f"SELECT id, outcome FROM repairs WHERE outcome IS NOT NULL AND id IN ({marks})", waiting):  # noqa: S608 - marks alone
            self.intents[id_].outcome = outcome
            self.closed.append(self.intents[id_])
        old = self.now_ms() - 2 * 3_600_000
        if len(self.intents) > 500:
            self.intents = {k: i for k, i in self.intents.items() if i.outcome is None or i.intent_at > old}

    # Questions

    def open(self) -> list[Intent]:
        return [i for i in self.intents.values() if i.outcome is None]

    def paused(self, server_id: str | None, host: str | None, before: float) -> str:
        """The brake that has stopped automation there since before a time; empty if none has."""
        for scope, target, since, until in self.brakes.values():
            if since > before or (until is not None and until <= self.now_ms()):
                continue
            if scope == "all" or (scope == "host" and target == host) or (scope == "server" and target == server_id):
                return f"{scope} {target}".strip()
        return ""

    def blocked(self, subject: str) -> Lease | None:
        """A lease that keeps newcomers away."""
        lease = self.leases.get(subject)
        if lease is None or lease.holder is None:
            return None
        return lease if lease.expires_at > self.now_ms() or lease.kind not in ("repair", "backup", "maintenance") else None

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        return self.reader.execute(query, parameters).fetchall()


def virtual(ms: int) -> float:
    """Virtual seconds of a time of the database, before anybody moved its clock."""
    return (ms - EPOCH_MS) / 1000
