"""What an invariant hears, and how it says that it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from flows.act.sweep import SweepResult
from flows.domain.finding import OPERATION_ACTIONS, WITHDRAWALS
from flows.settings import Settings
from flows.simulate.controllers import Controllers
from flows.simulate.faults import Faults
from flows.simulate.ledger import Ledger
from flows.simulate.loop import Process
from flows.simulate.world import Effect, World

WITHDRAWING = frozenset(a.value for a in WITHDRAWALS)
OF_OPERATIONS = frozenset(a.value for a in OPERATION_ACTIONS)
BULK = frozenset({"rehydrate_proxy"})


class Violation(Exception):
    """``name`` is the invariant's, ``at`` virtual seconds."""

    def __init__(self, name: str, at: float, what: str) -> None:
        super().__init__(f"{name} at {at:.1f} s: {what}")
        self.name, self.at, self.what = name, at, what


@dataclass
class Scene:
    """What every invariant may look at. ``quiet_from``: when the last fault ended. ``broken`` is called with a violation, once each."""

    world: World
    ledger: Ledger
    controllers: Controllers
    faults: Faults
    settings: Settings
    broken: Callable[[Violation], None]
    #: When a write to a source may have gone wrong last: by a lost answer, a cut, an outage.
    doubts: dict[str, float] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return self.controllers.loop.time()

    def doubt(self, source: str) -> float:
        return self.doubts.get(source, -1e9)

    def troubled(self, *sources: str) -> bool:
        """Whether any of these sources, or the database, or a host, is in trouble now or was a minute ago. Of agents that do not answer one by
        one only those are in trouble."""
        wire = self.world.wire
        for source in (*sources, "database"):
            trouble = wire.trouble(source)
            partial = trouble.partial and source != "agents"
            if trouble.down or trouble.refusing or trouble.slow > 1 or partial or trouble.lying or trouble.lose_before or trouble.lose_after:
                return True
            if any(n for (_, cut), n in wire.cuts.items() if cut == source) or self.now - self.doubt(source) < 90:
                return True
        return bool(self.controllers.down) or self.controllers.store.down_until > self.now

    def withdrawn_out(self, server_id: str | None, subject: str) -> bool:
        """Whether the hour's twelve withdrawals are used up: by a receiver that refused them, say."""
        since = self.ledger.now_ms() - 3_600_000
        mine = [i for i in self.ledger.intents.values() if i.action in WITHDRAWING and i.intent_at > since]
        return max(sum(i.subject == subject for i in mine), sum(server_id is not None and i.server_id == server_id for i in mine)) >= 12

    def held(self, server_id: str | None, host: str | None, subject: str = "") -> str:
        """What lawfully keeps automation from it now; empty if nothing does."""
        ledger = self.ledger
        pause = ledger.paused(server_id, host, self.now)
        if pause:
            return f"pause of {pause}"
        for name in (server_id, subject):
            if name and ledger.blocked(name) is not None:
                return f"lease of {name}"
        return "operation" if server_id in ledger.live else ""


class Invariant:
    """``name`` is the specification's."""

    name: ClassVar[str]

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.ledger, self.world = scene.ledger, scene.world

    def effect(self, effect: Effect) -> None:
        """Something reached a receiver."""

    def before_commit(self, process: Process | None, tables: frozenset[str]) -> None:
        """A commit, the ledger still as it was before it."""

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        """A commit, the ledger as it is after it."""

    def swept(self, process: Process, result: SweepResult | None) -> None:
        """A sweep came to its end; None: it raised."""

    def minute(self) -> None:
        """A minute passed."""

    def ended(self) -> None:
        """The simulation is over, long after its last fault."""

    def broken(self, what: str) -> None:
        self.scene.broken(Violation(self.name, self.scene.now, what))


def working_under(ledger: Ledger, process: Process, effect: Effect) -> str:
    """The subject of the lease under which a process does this; empty if it never had one for it."""
    candidates = [effect.server_id, f"proxy:{effect.target}", f"dns:{effect.target}", f"container:{effect.target}", "source:proxy", "source:dns"]
    return next((s for s in candidates if s and (process.holder, s) in ledger.held), "")
