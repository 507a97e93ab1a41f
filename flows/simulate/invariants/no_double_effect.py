"""``no_double_effect``: agents, bridge and zone complete no second effect of one repair or step; at Proxmox nothing is created or destroyed by
somebody whose lease is another's; whoever was superseded commits nothing but its outcome, marked ``fenced``: no intent, no lease, no message.

A second effect is one that changes the same thing once more, in the same way, while nobody else changed it in between.
"""

from __future__ import annotations

from flows.simulate.invariants.base import Invariant, Scene
from flows.simulate.loop import Process
from flows.simulate.world import Effect

#: What a superseded sweep, and a superseded run, may still write: its outcome, and the heartbeat of a lease that is still its own.
_OF_SWEEPS = frozenset({"repairs", "audit", "leases"})
_OF_RUNS = frozenset({"attempts", "operations", "audit"})
_FINAL = frozenset({"clone", "destroy"})


class NoDoubleEffect(Invariant):
    name = "no_double_effect"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._last: dict[tuple[str, str], tuple[object, str]] = {}

    def effect(self, effect: Effect) -> None:
        process = effect.process
        if effect.source == "discord":
            return
        if effect.verb.endswith("!"):
            self.broken(f"{process} did {effect.source} {effect.verb[:-1]} of {effect.target} with a token lower than one seen there")
        if not effect.changed:
            return
        thing = (effect.source, effect.target)
        if process is None or effect.source == "proxmox":
            self._last.pop(thing, None)
            if process is not None and effect.verb in _FINAL:
                self._late(effect, process)
            return
        unit = self._unit(effect, process)
        if self._last.get(thing) == (unit, effect.verb):
            self.broken(f"{effect.source} completed {effect.verb} of {effect.target} twice for {unit}")
        self._last[thing] = (unit, effect.verb)

    def _unit(self, effect: Effect, process: Process) -> object:
        """The repair or the step that this belongs to."""
        if process.kind == "run":
            operation, _ = process.told["run"]
            rows = self.ledger.rows("SELECT step, direction FROM journal WHERE operation_id = ? AND state = 'started'", operation)
            return (operation, *sorted(map(tuple, rows)))
        mine = [i for i in self.ledger.intents.values() if i.epoch == process.told.get("epoch") and i.seen <= effect.sent]
        return mine[-1].id if mine else process.name

    def _late(self, effect: Effect, process: Process) -> None:
        """A run has the lease of one server; a sweep has given back those of what it repaired before."""
        concerned = self.ledger.servers if process.kind == "run" else {f"container:{effect.target}"}
        for (holder, subject), lost in self.ledger.lost.items():
            if holder == process.holder and subject in concerned and lost < effect.at:
                self.broken(f"{process} had a container {effect.verb}ed after its lease of {subject} was lost")

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        """What tables alone do not tell: begun under an epoch that is over, or ended as if it were not."""
        epoch, holder = self.ledger.epoch
        for intent in self.ledger.fresh:
            if intent.epoch < epoch:
                self.broken(f"{process} began {intent.action} of {intent.subject} for epoch {intent.epoch} under epoch {epoch}")
        if process is None or process.kind != "sweep" or process.told.get("epoch", epoch) >= epoch:
            return
        for intent in self.ledger.closed:
            if intent.outcome != "fenced":
                self.broken(f"{process} ended {intent.action} of {intent.subject} as {intent.outcome} under epoch {epoch} of {holder}")
        if "leases" in tables:
            taken = [s for s, at in self.ledger.taken.items() if at == self.scene.now and self.ledger.leases[s].holder == process.holder]
            for subject in taken:
                self.broken(f"{process} took the lease of {subject} under epoch {epoch} of {holder}")

    def before_commit(self, process: Process | None, tables: frozenset[str]) -> None:
        if process is None:
            return
        epoch = process.told.get("epoch")
        if process.kind == "sweep" and epoch is not None and self.ledger.epoch[0] > epoch and not tables <= _OF_SWEEPS:
            self.broken(f"{process} of epoch {epoch} wrote {', '.join(sorted(tables))} under epoch {self.ledger.epoch[0]}")
        if process.kind == "run" and not tables <= _OF_RUNS:
            for (holder, subject), lost in self.ledger.lost.items():
                if holder == process.holder and lost < self.scene.now and subject in self.ledger.servers:
                    self.broken(f"{process} wrote {', '.join(sorted(tables))} after its lease of {subject} was lost")
