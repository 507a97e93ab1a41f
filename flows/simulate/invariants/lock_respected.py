"""``lock_respected``: no effect on a server under another's lease or a pause.

Brakes are read in the transaction of the intent: none is written under a pause, and what was intended before it may still end. A lease is
judged when an effect was sent. Its sender may not know of a loss that is younger than its next heartbeat, counted from when it last went on
after standing still; while it could not reach the database, until its lease would have ended it.
"""

from __future__ import annotations

from flows.domain.sources import Registration
from flows.simulate.invariants.base import BULK, OF_OPERATIONS, Invariant, Scene, working_under
from flows.simulate.loop import Process
from flows.simulate.world import Effect

#: Seconds that a heartbeat, and the end of the work that it calls for, may take.
SLACK_S = 5.0


class LockRespected(Invariant):
    name = "lock_respected"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._registered: dict[str, Registration] = {}

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        for subject in self.ledger.stolen:
            self.broken(f"{process} took the lease of {subject} from somebody who still held it")
        for intent in self.ledger.fresh:
            begun = intent.outcome != "failed"  # in the very transaction of its intent: what could not be begun
            pause = self.ledger.paused(intent.server_id, intent.host, self.scene.now - 0.001) if begun and self.ledger.brakes else ""
            if pause:
                self.broken(f"{process} began {intent.action} of {intent.subject} although {pause} is paused")
            lease = self.ledger.blocked(intent.server_id or intent.subject)
            if begun and lease is not None and intent.action not in OF_OPERATIONS | BULK and lease.subject != intent.lease_subject:
                self.broken(f"{process} began {intent.action} of {intent.subject} under the {lease.kind} lease of {lease.holder}")

    def effect(self, effect: Effect) -> None:
        process = effect.process
        if effect.source == "proxy":
            before, self._registered = self._registered, dict(self.world.registrations)
            if process is not None and process.kind == "sweep" and effect.verb == "rehydrate":
                self._bulk(process, before)
        if process is not None and process.kind in ("sweep", "run"):
            self._lease(effect, process)

    def _bulk(self, process: Process, before: dict[str, Registration]) -> None:
        """A bulk repair leaves out whom a pause, or another's lease, had stopped before it was ordered."""
        ordered = max((i.seen for i in self.ledger.intents.values() if i.action in BULK and i.epoch == process.told.get("epoch")), default=0.0)
        for server in self.ledger.servers.values():
            if before.get(server.name) == self._registered.get(server.name):
                continue
            pause = self.ledger.paused(server.id, server.node, ordered)
            lease = self.ledger.blocked(server.id)
            if pause or (lease is not None and self.ledger.taken.get(server.id, 0.0) < ordered):
                self.broken(f"{process} rehydrated {server.name} although {pause or 'another holds its lease'}{' is paused' if pause else ''}")

    def _lease(self, effect: Effect, process: Process) -> None:
        subject = self._of_run(process) if process.kind == "run" else working_under(self.ledger, process, effect)
        if not subject:
            self.broken(f"{process} did {effect.source} {effect.verb} of {effect.target} without ever having had a lease of it")
            return
        lost = self.ledger.lost.get((process.holder, subject))
        if lost is None:
            return
        timing = self.scene.settings.timing
        blind = self.scene.doubt("database") > lost - timing.lease_s
        knew = max(lost, min(process.resumed, effect.sent)) + (timing.lease_s if blind else timing.heartbeat_s) + SLACK_S
        if effect.sent > knew:
            now = self.ledger.leases.get(subject)
            what = f"{process} did {effect.source} {effect.verb} of {effect.target}"
            self.broken(f"{what} {effect.sent - lost:.0f} s after its lease went to {now.holder if now else 'nobody'}")

    def _of_run(self, process: Process) -> str:
        return next((s for (holder, s) in self.ledger.held if holder == process.holder), "")
