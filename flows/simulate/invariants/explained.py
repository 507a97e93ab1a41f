"""``explained``: every open finding has a reason; every effect has an intent before it and an outcome after it.

Each effect has its own: of the same sweep, for the same thing, by an action that does such a thing, and not yet at its end. A run's effect has
the journal's line of a step that does such a thing to that very server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flows.act.sweep import SweepResult
from flows.simulate.invariants.base import Invariant, Scene
from flows.simulate.ledger import Intent
from flows.simulate.loop import Process
from flows.simulate.world import Effect

#: Sweeps that find an intent closed by nobody, after its actor's lease has run out.
SWEEPS = 4
#: What each action does, to what kind of thing: (receiver, verb, what names its target there).
DOES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "publish_dns": (("dns", "publish", "fqdn"),), "withdraw_dns": (("dns", "withdraw", "subject"),),
    "register_proxy": (("proxy", "register", "name"),), "deregister_proxy": (("proxy", "deregister", "subject"),),
    "suspend_workload": (("proxy", "deregister", "name"), ("agents", "stop", "server"), ("proxmox", "shutdown", "vmid")),
    "rehydrate_proxy": (("proxy", "rehydrate", ""),),
    "destroy_container": (("proxmox", "stop", "subject"), ("proxmox", "destroy", "subject")),
}  # fmt: skip
#: The steps that do this: one of them must be in the journal of a run that does it.
STEPS: Mapping[tuple[str, str], frozenset[str]] = {
    ("proxmox", "clone"): frozenset({"create_container"}),
    ("proxmox", "configure"): frozenset({"configure"}),
    ("proxmox", "start"): frozenset({"start_container", "restart_workload"}),
    ("proxmox", "stop"): frozenset({"start_container", "create_container", "destroy_container"}),
    ("proxmox", "shutdown"): frozenset({"stop_workload", "restart_workload"}),
    ("proxmox", "destroy"): frozenset({"create_container", "destroy_container"}),
    ("agents", "start"): frozenset({"start_workload"}),
    ("agents", "stop"): frozenset({"start_workload", "stop_workload"}),
    ("agents", "restart"): frozenset({"restart_workload"}),
    ("agents", "restart of the agent"): frozenset({"restart_agent"}),
    ("dns", "publish"): frozenset({"publish_dns"}),
    ("dns", "withdraw"): frozenset({"publish_dns", "unpublish_dns"}),
    ("proxy", "register"): frozenset({"register_proxy"}),
    ("proxy", "deregister"): frozenset({"deregister_proxy", "register_proxy"}),
}


class Explained(Invariant):
    name = "explained"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._open: dict[str, int] = {}
        self._tokens: dict[str, int | None] = {}
        #: (epoch, receiver, verb, target) → the intent for it, when it was committed.
        self._own: dict[tuple[int, str, str, str], tuple[str, float]] = {}
        #: Intent → when, and by whom, its outcome was committed.
        self._ended: dict[str, tuple[float, Process | None]] = {}

    def effect(self, effect: Effect) -> None:
        process = effect.process
        if process is None or effect.source == "discord":
            return
        what = f"{process} did {effect.source} {effect.verb} of {effect.target}"
        verb = effect.verb.removesuffix("!")
        if process.kind == "sweep":
            self._of_sweep(effect, process, verb, what)
        elif process.kind == "run":
            self._of_run(effect, process, verb, what)

    def _of_sweep(self, effect: Effect, process: Process, verb: str, what: str) -> None:
        target = effect.server_id if effect.source == "agents" else effect.target
        own = self._own.get((process.told.get("epoch", 0), effect.source, verb, target))
        if own is None or own[1] > effect.sent:
            self.broken(f"{what} without an intent of its own")
            return
        ended = self._ended.get(own[0])
        if ended is not None and ended[1] is process and ended[0] < effect.sent:
            self.broken(f"{what} after it had written the outcome")

    def _of_run(self, effect: Effect, process: Process, verb: str, what: str) -> None:
        operation, _ = process.told["run"]
        joined = "operations o JOIN servers s ON s.id = o.server_id JOIN journal j ON j.operation_id = o.id"
        rows = self.ledger.rows(f"SELECT s.id, s.vmid, j.step FROM {joined} WHERE o.id = ?", operation)  # noqa: S608 - tables alone
        steps = {step for *_, step in rows}
        if not steps & STEPS.get((effect.source, verb), frozenset()):
            self.broken(f"{what} without a line of its own in the journal")
        elif (effect.target != str(rows[0][1])) if effect.source == "proxmox" else (effect.server_id not in ("", rows[0][0])):
            self.broken(f"{what}, which is not its operation's")

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if "episodes" in tables:
            for key, reason in self.ledger.rows("SELECT open_key, reason FROM episodes WHERE closed_at IS NULL"):
                if not reason:
                    self.broken(f"{key} is open without a reason")
        for intent in self.ledger.fresh:
            if intent.outcome is None:
                for thing in self._things(intent):
                    self._own[intent.epoch, *thing] = (intent.id, intent.seen)
        for intent in self.ledger.closed:
            self._ended[intent.id] = (self.scene.now, process)
            self._tokens.pop(intent.id, None)

    def _things(self, intent: Intent) -> Iterator[tuple[str, str, str]]:
        """What this intent is about to do, and to what, as its receivers call it."""
        server = self.ledger.servers.get(intent.server_id or "")
        for source, verb, named in DOES.get(intent.action, ()):
            if named == "subject":
                yield source, verb, intent.subject.partition(":")[2]
            elif not named:
                yield source, verb, ""
            elif server is not None:
                names = {"fqdn": f"{server.name}.{self.scene.settings.dns.zone}", "name": server.name, "server": server.id, "vmid": str(server.vmid)}
                yield source, verb, names[named]

    def swept(self, process: Process, result: SweepResult | None) -> None:
        if result is None or result.plan is None:
            return
        waiting = {}
        for intent in self.ledger.open():
            lease = self.ledger.leases.get(intent.lease_subject or "")
            held = lease is not None and lease.holder is not None and lease.expires_at > self.ledger.now_ms() and lease.token == self._token(intent)
            if held or (intent.operation_id and intent.operation_id in self._live()):
                continue
            waiting[intent.id] = self._open.get(intent.id, 0) + 1
            if waiting[intent.id] > SWEEPS:
                self.broken(f"{intent.action} of {intent.subject} has had no outcome for {waiting[intent.id]} sweeps")
        self._open = waiting

    def _token(self, intent: Intent) -> int | None:
        """The token of its own lease: whoever holds the subject after that does not hold it for this intent."""
        if intent.id not in self._tokens:
            self._tokens[intent.id] = self.ledger.rows("SELECT lease_token FROM repairs WHERE id = ?", intent.id)[0][0]
        return self._tokens[intent.id]

    def _live(self) -> set[str]:
        return {row[0] for row in self.ledger.rows("SELECT id FROM operations WHERE live_server IS NOT NULL")}
