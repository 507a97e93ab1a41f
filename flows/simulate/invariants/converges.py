"""``converges``: faults ended, after 90 virtual minutes no repairable finding is left; one with closed breaker and no lease is gone within 5
sweeps beyond the limits' queue. Judged by the world: what is served is what should be.
"""

from __future__ import annotations

from flows.act.sweep import SweepResult
from flows.clients.dns_names import OWNER_LABEL
from flows.domain.finding import Reason, Suppressed
from flows.simulate.invariants.base import Invariant, Scene
from flows.simulate.loop import Process

SWEEPS = 5
AFTER_S = 90 * 60.0
#: Seconds after the last fault in which an undo that began under it may still fail.
CALM_S = 30 * 60.0


class Converges(Invariant):
    name = "converges"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._eligible: dict[str, int] = {}
        #: Operation → how often its undo was seen to fail, and when it last did.
        self._undone: dict[str, list[tuple[int, float]]] = {}

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if "operations" not in tables:
            return
        for id_, failures in self.ledger.rows("SELECT id, undo_failures FROM operations WHERE undo_failures > 0 AND live_server IS NOT NULL"):
            seen = self._undone.setdefault(id_, [])
            if not seen or seen[-1][0] < failures:
                seen.append((failures, self.scene.now))
            elif seen[-1][0] > failures:
                self._undone[id_] = [(failures, self.scene.now)]  # a person ordered it anew

    def swept(self, process: Process, result: SweepResult | None) -> None:
        """A finding that nothing but the limits holds back must go. Only once the faults are over. A sweep that looked at nothing, because
        another one was at work or the database was away, says nothing of any finding; one that saw it held back adds nothing."""
        scene = self.scene
        if scene.now < scene.faults.ended + 120 or scene.faults.active:
            self._eligible.clear()
            return
        if result is None or result.plan is None:
            return
        eligible = [r.finding for r in result.plan.repairs]
        waiting = [s.finding for s in result.plan.suppressed if self._queues(s)]
        queue = (len(eligible) + len(waiting)) // 2
        present = {finding.key for finding in result.plan.findings}
        counted = {key: n for key, n in self._eligible.items() if key in present}
        for finding in (*eligible, *waiting):
            counted[finding.key] = self._eligible.get(finding.key, 0) + 1
            if counted[finding.key] > SWEEPS + queue:
                self.broken(f"{finding.key} ({finding.summary}) is still there after {counted[finding.key]} sweeps")
        self._eligible = counted

    def _queues(self, held: Suppressed) -> bool:
        """Whether it waits for its turn alone."""
        if held.reason is not Reason.RATE_LIMITED or held.finding.not_before is not None:
            return False
        return not self.scene.withdrawn_out(held.finding.server_id, held.finding.subject)

    def ended(self) -> None:
        scene, ledger = self.scene, self.ledger
        if scene.now < scene.faults.ended + AFTER_S:
            return
        unpublished: list[str] = []
        publishable = 0
        for server in ledger.servers.values():
            machine = self.world.machines.get(server.vmid)
            ready = machine is not None and machine.ready and machine.agent_up and not machine.liar
            name = f"{server.name}.{scene.settings.dns.zone}"
            if scene.held(server.id, server.node):
                continue
            entry = self.world.registrations.get(server.name)
            if server.published and ready:
                publishable += 1
                if entry is None or (entry.address, entry.port) != (server.address, server.port):
                    self.broken(f"{server.name} is ready and not registered")
                if not any(r.value == scene.settings.proxy.player_address for r in self.world.zone.get(name, ())):
                    unpublished.append(server.name)
            running = machine is not None and machine.agent_up and machine.state.value in ("running", "starting")
            if server.billing not in ("active", "past_due") and running and server.ctype == "game" and server.state in ("active", "suspended"):
                self.broken(f"{server.name} runs although its customer is suspended")
        if not self._a_persons(len(unpublished), publishable):
            for name in unpublished:
                self.broken(f"{name} is ready and has no record")
        names = {s.name for s in ledger.servers.values() if s.lives}
        for name in self.world.registrations:
            if name not in names and not scene.held(None, None, f"proxy:{name}"):
                self.broken(f"{name} is registered and nobody's")
        for label in self.world.zone:
            if label.startswith(OWNER_LABEL) and label.removeprefix(OWNER_LABEL).partition(".")[0] not in names:
                self.broken(f"{label.removeprefix(OWNER_LABEL)} is published and nobody's")
        self._operations()

    def _a_persons(self, unpublished: int, publishable: int) -> bool:
        """A zone that lost so many records at once is held for a person, by specification: as long as the world shows that many, and only if
        one was called, by a message that arrived."""
        policy = self.scene.settings.policy
        if unpublished < policy.drift_min or unpublished <= publishable * policy.drift_fraction:
            return False
        incident = self.ledger.rows("SELECT 1 FROM episodes WHERE open_key = 'source_drift/source:dns' AND closed_at IS NULL")
        return bool(incident) and any("source_drift/source:dns" in post.key for post in self.world.posts)

    def _operations(self) -> None:
        limit = self.ledger.now_ms() - (2 * 3_600_000)
        for id_, kind, state in self.ledger.rows("SELECT id, kind, state FROM operations WHERE live_server IS NOT NULL AND created_at < ?", limit):
            why = self._persons(id_, state)
            if why:
                self.broken(f"{kind} {id_} is still {state}: {why}")
        for subject, kind in self.ledger.rows("SELECT subject, kind FROM leases WHERE holder IS NOT NULL AND expires_at < ?", limit):
            if kind not in ("patch", "restore", "repair", "maintenance"):
                self.broken(f"the {kind} lease of {subject} has been expired for two hours")

    def _persons(self, operation_id: str, state: str) -> str:
        """Why an operation is not a person's; empty if it is: its undo failed three times, one after the other, while something was wrong, and
        a person was called, by a message that arrived."""
        failed = self._undone.get(operation_id, [])
        most = self.scene.settings.policy.cleanup_attempts
        if state != "cleanup_required" or not failed or failed[-1][0] < most:
            return "automation is not at its end"
        if len(failed) < most:
            return f"its undo was tried {len(failed)} times, and {most} are said to have failed"
        if failed[-1][1] > self.scene.faults.ended + CALM_S:
            return f"its undo failed at {failed[-1][1]:.0f} s, when nothing was wrong any more"
        key = f"cleanup_required/operation:{operation_id}"
        return "" if any(key in post.key for post in self.world.posts) else "no message called a person"
