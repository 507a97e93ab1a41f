"""``alerted``: each alert-worthy transition reaches its channel at least once; more than once only if an answer was lost.

Alert-worthy: an episode that automation will not mend, that it grew worse, each day that it lasts, and once that it is over; a breaker that
opened; an operation that failed for good; a source that stays unknown; each day of a pause. An operation that is a repair is told as the
repair's outcome, by the sweep that settles it. Told is what the transaction of the transition wrote to the outbox, and the channel got.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flows.act.sweep import SweepResult
from flows.domain.finding import ESCALATES, OWN_ROUTE
from flows.simulate.invariants.base import BULK, OF_OPERATIONS, WITHDRAWING, Invariant, Scene
from flows.simulate.ledger import Intent
from flows.simulate.loop import Process
from flows.simulate.world import Effect

FAILED = frozenset({"failed", "unverified"})
HOUR_MS = 3_600_000
#: From a finding to the commit that records it, at most; less than an interval.
SEEN_MS = 30_000
#: One may be at work already when the operation fails, and a twin beside it.
SWEEPS = 3
#: Reasons with which nobody knows yet that a finding with a route of its own is a case of its own.
HUSHED = frozenset({"unconfirmed", "correlated"})
ROUTED = frozenset(check.value for check in OWN_ROUTE)
WILL_NOT = frozenset(reason.value for reason in ESCALATES)
#: Sources whose silence the wire itself remembers.
SOURCES = ("proxy", "dns", "engine", "proxmox")
_OPEN = (
    'SELECT id, open_key, "check", reason, severity, escalated_at, recalled_at, opened_at, server_id, subject FROM episodes WHERE closed_at IS NULL'
)


@dataclass(frozen=True, slots=True)
class Open:
    """An open episode as of a commit."""

    id: str
    key: str
    check: str
    reason: str
    severity: int
    escalated_at: int | None
    recalled_at: int | None
    opened_at: int
    server_id: str | None
    subject: str

    @property
    def told_at(self) -> int:
        return max(self.escalated_at or 0, self.recalled_at or 0)


@dataclass(frozen=True, slots=True)
class Said:
    """A message about an episode, as it was written: which transition, in which channel."""

    transition: str
    key: str
    channel: str


class Alerted(Invariant):
    name = "alerted"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._episodes: dict[str, Open] = {}
        self._posted: dict[str, list[float]] = {}
        self._failed: set[str] = set()
        self._unsettled: dict[str, int] = {}
        self._last = 0
        #: By key: in which channel its open episode was announced.
        self._channels: dict[str, str] = {}
        self._silent: Counter[str] = Counter()
        self._since: dict[str, int] = {}
        self._overdue: Counter[str] = Counter()

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        said = self._said() if "outbox" in tables else []
        if "episodes" in tables or said:
            self._transitions(said)
        if process is not None and process.kind == "sweep" and "sources" in tables:
            self._recorded(process)
        if self.ledger.closed:
            for intent in self.ledger.closed:
                self._breaker(intent)
        if "operations" in tables:
            for id_, kind, queue in self.ledger.rows(
                "SELECT id, kind, queue FROM operations WHERE state = 'failed' AND finished_at > ?", self.ledger.now_ms() - 60_000
            ):
                if id_ not in self._failed:
                    self._failed.add(id_)
                    if self.ledger.rows("SELECT 1 FROM outbox WHERE key LIKE ?", f"%_failed/{id_}/%"):
                        continue
                    if queue != "repairs":
                        self.broken(f"{kind} {id_} failed, and nobody is told")
                    self._unsettled[id_] = 0

    def swept(self, process: Process, result: SweepResult | None) -> None:
        """Each sweep that looked at all begins by settling what has ended."""
        if result is None or result.plan is None:
            return
        told = "SELECT 1 FROM repairs r JOIN outbox o ON o.key = 'action/' || r.id WHERE r.operation_id = ?"
        for id_ in list(self._unsettled):
            self._unsettled[id_] += 1
            if self.ledger.rows(told, id_):
                del self._unsettled[id_]
            elif self._unsettled[id_] > SWEEPS:
                self.broken(f"the repair {id_} failed, and {self._unsettled[id_]} sweeps later nobody is told")

    # Episodes

    def _said(self) -> list[Said]:
        """What this commit says of episodes."""
        found = []
        for number, key, channel in self.ledger.rows("SELECT rowid, key, channel FROM outbox WHERE rowid > ? ORDER BY rowid", self._last):
            self._last = number
            transition, _, rest = key.partition("/")
            if transition in ("opened", "changed", "escalated", "recalled", "closed"):
                found.append(Said(transition, rest.rpartition("/")[0], channel))
        return found

    def _transitions(self, said: list[Said]) -> None:
        """The episodes before and after a commit, against what it says of them."""
        before = self._episodes
        after = {row[1]: Open(*row) for row in self.ledger.rows(_OPEN)}
        self._episodes = after
        by_key: dict[str, list[Said]] = {}
        for message in said:
            by_key.setdefault(message.key, []).append(message)
        for key, episode in after.items():
            old = before.get(key)
            if old is not None and old.id == episode.id and old == episode and key not in by_key:
                continue
            self._lasting(old if old is not None and old.id == episode.id else None, episode, [m.transition for m in by_key.get(key, ())])
        for key, old in before.items():
            gone = key not in after or after[key].id != old.id
            if gone and old.escalated_at is not None:
                self._over(old, by_key.get(key, []))
        for message in said:
            if message.transition == "closed" and (message.key not in before or message.key in after):
                self.broken(f"{message.key} was said to be over, and is not")
            if message.transition == "closed":
                self._channels.pop(message.key, None)
            elif message.transition != "recalled":
                self._channels[message.key] = message.channel

    def _lasting(self, old: Open | None, now: Open, said: list[str]) -> None:
        """An episode that began or changed."""
        told = now.told_at != (old.told_at if old is not None else 0)
        if told and not said and not self._breaker_told(now):
            self.broken(f"the episode {now.key} says that people were told, and nobody is")
        if old is not None and old.escalated_at is not None:
            grown = now.severity > old.severity
            if {"opened", "escalated"} & set(said):
                self.broken(f"{now.key} was announced again, {(self.ledger.now_ms() - old.told_at) / 1000:.0f} s after the last time")
            if grown and "changed" not in said:
                self.broken(f"{now.key} grew worse, from {old.severity} to {now.severity}, and nobody is told")
            if "changed" in said and not grown and now.reason != "awaiting_review":
                self.broken(f"{now.key} was announced again, and is what it was")
            early = self.ledger.now_ms() - old.told_at < self._recall_ms() - 60_000
            if "recalled" in said and early:
                self.broken(f"{now.key} was recalled {(self.ledger.now_ms() - old.told_at) / 1000:.0f} s after the last time")
        if now.escalated_at is None:
            if said:
                self.broken(f"{now.key} was announced, and the episode does not know it")
            if now.reason not in HUSHED if now.check in ROUTED else now.reason in WILL_NOT:
                self.broken(f"{now.key} is left alone as {now.reason}, and nobody was ever told")

    def _over(self, old: Open, said: list[Said]) -> None:
        over = [m for m in said if m.transition == "closed"]
        if not over:
            self.broken(f"{old.key} is over, and who was told of it is not told that")
        announced = self._channels.get(old.key)
        if announced is not None and over and over[0].channel != announced:
            self.broken(f"{old.key} was announced in {announced}, and its end in {over[0].channel}")
        if len(over) > 1:
            self.broken(f"{old.key} is over, and said to be {len(over)} times")

    def _breaker_told(self, episode: Open) -> bool:
        """Whether the message of an opened breaker, of a repair of this very finding, has told people already."""
        if episode.reason != "breaker_open":
            return False
        query = "SELECT 1 FROM outbox o JOIN repairs r ON o.key = 'breaker/' || r.id WHERE r.\"check\" = ? AND r.subject = ? AND o.created_at > ?"
        return bool(self.ledger.rows(query, episode.check, episode.subject, episode.opened_at - 60_000))

    # What lasts

    def _recorded(self, process: Process) -> None:
        """After a sweep wrote down what it saw: whatever is due by now was due to it."""
        now, recall = self.ledger.now_ms(), self._recall_ms()
        for key, episode in self._episodes.items():
            due = episode.escalated_at is not None and episode.check not in ROUTED and episode.reason in WILL_NOT
            if not due or now - episode.told_at <= recall + 60_000:
                self._overdue.pop(key, None)
                continue
            if not self.ledger.rows("SELECT 1 FROM episodes WHERE id = ? AND last_seen_at > ?", episode.id, now - SEEN_MS):
                continue  # nobody could tell this time whether it still is so: it is recalled when it is seen again
            self._overdue[key] += 1
            if self._overdue[key] > 1:
                self.broken(f"{key} waits for a person, who heard of it last {(now - episode.told_at) // 60_000} min ago")
        unknown = process.told.get("unknown", ())
        for source in SOURCES:
            trouble = self.world.wire.trouble(source)
            if source not in unknown or not (trouble.down or trouble.lying):
                self._silent.pop(source, None)
                continue
            self._silent[source] += 1
            if self._silent[source] == 1:
                self._since[source] = now
            if self._silent[source] < self.scene.settings.policy.source_critical_sweeps:
                continue
            told = "SELECT 1 FROM outbox WHERE kind = 'source_unknown_long' AND key LIKE ? AND created_at > ?"
            if not self.ledger.rows(told, f"%/source_unknown/source:{source}/%", self._opened(source) - 60_000):
                self.broken(f"{source} has been unknown for {self._silent[source]} sweeps, and nobody is called")

    def _opened(self, source: str) -> int:
        episode = self._episodes.get(f"source_unknown/source:{source}")
        return min(self._since[source], episode.opened_at if episode is not None else self._since[source])

    def minute(self) -> None:
        """A pause that lasts is recalled, by whichever sweep comes."""
        recall_s = self._recall_ms() / 1000
        for id_, (scope, target, since, _) in self.ledger.brakes.items():
            late = self.scene.now - since - recall_s
            if late < 600 or self.scene.troubled():
                continue
            rows = self.ledger.rows("SELECT MAX(created_at) FROM outbox WHERE key LIKE ?", f"automation_paused/{id_}/%")
            last = rows[0][0]
            if last is None or self.ledger.now_ms() - last > self._recall_ms() + 600_000:
                self.broken(f"the pause of {scope} {target} has lasted {self.scene.now - since:.0f} s, and nobody is reminded")

    def _recall_ms(self) -> int:
        return int(self.scene.settings.policy.recall_s * 1000)

    # Breakers

    def _breaker(self, intent: Intent) -> None:
        """The failure that opens a breaker, by our own count."""
        if intent.outcome not in FAILED or intent.server_id is None or intent.action in WITHDRAWING | OF_OPERATIONS | BULK:
            return
        since = self.ledger.now_ms() - HOUR_MS
        mine = [i for i in self.ledger.intents.values() if i.server_id == intent.server_id and i.intent_at > since and i.outcome in FAILED]
        mine = [i for i in mine if i.action not in WITHDRAWING | OF_OPERATIONS | BULK]
        if len(mine) != self.scene.settings.policy.breaker_attempts:
            return
        keys = [f"breaker/{i.id}" for i in mine]
        if not any(self.ledger.rows("SELECT 1 FROM outbox WHERE key = ?", key) for key in keys):
            self.broken(f"the breaker of {intent.server_id} opened, and nobody is told")

    # Channels

    def effect(self, effect: Effect) -> None:
        if effect.source != "discord":
            return
        before = self._posted.setdefault(effect.target, [])
        doubt = max(self.scene.doubt("discord"), self.scene.doubt("database"), self.scene.doubt("dispatch"))
        if before and doubt < before[-1] - 60:
            self.broken(f"{effect.target} was posted again after {effect.at - before[-1]:.0f} s, and no answer was lost")
        before.append(effect.at)

    def ended(self) -> None:
        rows = self.ledger.rows("SELECT id, key, state, folded_into, channel FROM outbox WHERE created_at < ?", self.ledger.now_ms() - 15 * 60_000)
        keys = {id_: key for id_, key, *_ in rows}
        posted: Mapping[str, set[str]] = self._channels_of_posts()
        for _, key, state, into, channel in rows:
            told = keys.get(into, key) if state == "folded" and into is not None else key
            if told not in self._posted and into is not None and into not in keys:
                continue  # in a message that is younger than what must have arrived
            if told not in self._posted:
                self.broken(f"{key} ({state}) never reached its channel")
            elif told == key and channel not in posted.get(key, {channel}):
                self.broken(f"{key} reached {', '.join(sorted(posted[key]))} instead of {channel}")

    def _channels_of_posts(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for post in self.world.posts:
            found.setdefault(post.key, set()).add(post.channel)
        return found
