"""``lock_respected``: no effect on a server under another's lease or a pause.

Judged when an effect was sent. Its sender may not know of a loss that is younger than its next heartbeat; while it stood still or could not
reach the database, until its lease would have ended it.
"""

from __future__ import annotations

from flows.simulate.invariants.base import Invariant, working_under
from flows.simulate.loop import Process
from flows.simulate.world import Effect

#: Seconds between the last look at the brakes and the last moment of a repair that begins after it.
ACT_S = 12.0


class LockRespected(Invariant):
    name = "lock_respected"

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        for subject in self.ledger.stolen:
            self.broken(f"{process} took the lease of {subject} from somebody who still held it")

    def effect(self, effect: Effect) -> None:
        process = effect.process
        if process is None or process.kind not in ("sweep", "run"):
            return
        self._lease(effect)
        if process.kind == "sweep":
            server = self.ledger.servers.get(effect.server_id)
            running = effect.sent - ACT_S - (200.0 if process.pauses else 0.0)
            pause = self.ledger.paused(effect.server_id or None, server.node if server else None, running)
            if pause:
                self.broken(f"{process} did {effect.source} {effect.verb} of {effect.target} although {pause} is paused")

    def _lease(self, effect: Effect) -> None:
        process = effect.process
        assert process is not None
        what = f"{process} did {effect.source} {effect.verb} of {effect.target}"
        subject = self._of_run(effect) if process.kind == "run" else working_under(self.ledger, process, effect)
        if not subject:
            self.broken(f"{what} without ever having had a lease of it")
            return
        lost = self.ledger.lost.get((process.holder, subject))
        if lost is None:
            return
        timing = self.scene.settings.timing
        blind = process.pauses or lost - self.scene.doubt("database") < timing.lease_s
        grace = timing.lease_s + 300.0 if blind else timing.heartbeat_s + 5.0
        if effect.sent - lost > grace:
            now = self.ledger.leases.get(subject)
            self.broken(f"{what} {effect.sent - lost:.0f} s after its lease went to {now.holder if now else 'nobody'}")

    def _of_run(self, effect: Effect) -> str:
        process = effect.process
        assert process is not None
        return next((s for (holder, s) in self.ledger.held if holder == process.holder), "")
