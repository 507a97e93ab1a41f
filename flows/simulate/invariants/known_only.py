"""``known_only``: no repair was derived from an unknown source.

Silence is neither *not ready* nor *absent* nor *at rest*: what a repair's cause rests on must have been said in the sweep that ordered it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.simulate.invariants.base import Invariant
from flows.simulate.ledger import Intent, ServerRow
from flows.simulate.loop import Process

#: What each check's repair must have seen, besides the database; a check that is not here only reports. ``agent``: its own server's answer;
#: ``ready``: that answer, that it is ready; ``workload``: its answer, or that Proxmox says its container is stopped; ``running``: that Proxmox
#: says its container runs; ``unready``: see :meth:`KnownOnly._unready`; ``rest``: see :meth:`KnownOnly._rest`.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "dns_record": ("dns", "ready"), "dns_stale_record": ("dns",), "proxy_registration": ("proxy", "ready"),
    "proxy_stale_registration": ("proxy", "unready"), "operation_unsubmitted": ("engine",), "billing_suspended": ("agent",),
    "agent_offline": ("proxmox", "running"), "workload_stopped": ("proxmox", "workload"), "workload_error": ("agent",),
    "container_missing": ("proxmox",), "container_orphaned": ("proxmox",), "operation_orphaned": ("rest",), "stuck_provisioning": (),
    "cleanup_required": (), "source_drift": (),
}  # fmt: skip
#: Steps of which a task of Proxmox, or a job of the agent, may be under way although nobody says so.
PROXMOX_STEPS = frozenset({"create_container", "configure", "start_container", "destroy_container"})
WORKLOAD_STEPS = frozenset({"start_workload", "stop_workload", "restart_workload"})
#: Milliseconds between the look that a repair rests on and its intent, at most; and what a person may move the clock by meanwhile.
LOOK_MS = 60_000


class KnownOnly(Invariant):
    name = "known_only"

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if process is None or process.kind != "sweep":
            return
        if "sources" in tables:
            told = process.told
            told["unknown at observation"] = frozenset(told.get("unknown", ())) | ({"proxmox"} if told.get("lied to") else frozenset())
            told["answered at observation"] = told.get("answered", {})
            told["containers at observation"] = told.get("containers", {})
            told["servers at observation"] = self.ledger.servers
            told["steps at observation"] = self._steps()
        for intent in self.ledger.fresh:
            self._judge(process, intent)

    def _steps(self) -> dict[str, tuple[str | None, int | None]]:
        """Of each live operation: the step under way, and until when."""
        if not self.ledger.live:
            return {}
        rows = self.ledger.rows("SELECT id, step, step_deadline_at FROM operations WHERE live_server IS NOT NULL")
        return {id_: (step, deadline) for id_, step, deadline in rows}

    def _judge(self, process: Process, intent: Intent) -> None:
        told = process.told
        unknown = told.get("unknown at observation", frozenset())
        answered: Mapping[str, bool] = told.get("answered at observation", {})
        server = self.ledger.servers.get(intent.server_id or "")
        status = told.get("containers at observation", {}).get(server.vmid if server else 0, "unknown")
        needs = NEEDS.get(intent.check)
        what = f"{intent.action} of {intent.subject} was ordered"
        if needs is None:
            self.broken(f"{what} for {intent.check}, which only reports")
            return
        if intent.check == "source_drift":
            needs = (intent.subject.removeprefix("source:"),)
        for source in needs:
            if source == "running":
                if status != "running":
                    self.broken(f"{what} although its container was {status}")
            elif source == "agent" or (source == "workload" and status != "stopped"):
                if intent.server_id not in answered:
                    self.broken(f"{what} although its agent gave no answer")
            elif source == "ready":
                if not answered.get(intent.server_id or ""):
                    self.broken(f"{what} although its agent did not say that it is ready")
            elif source == "unready":
                self._unready(told, intent, what, proxmox_unknown="proxmox" in unknown)
            elif source == "rest":
                self._rest(told, intent, what, proxmox_unknown="proxmox" in unknown)
            elif source == "workload":
                continue
            elif source in unknown:
                self.broken(f"{what} although {source} was unknown")

    def _unready(self, told: Mapping[str, Any], intent: Intent, what: str, *, proxmox_unknown: bool) -> None:
        """A registration that nothing but its backend's readiness can condemn: its agent said *not ready*, or Proxmox that nothing is there."""
        server: ServerRow | None = told.get("servers at observation", {}).get(intent.server_id or "")
        name = intent.subject.removeprefix("proxy:")
        entry = self.world.registrations.get(name)
        if server is None or not server.published or entry is None or entry.address != server.address or entry.port != server.port:
            return
        ready = told.get("answered at observation", {}).get(server.id)
        if ready is not None:
            if ready:
                self.broken(f"{what} although its agent said that it is ready")
            return
        if proxmox_unknown:
            self.broken(f"{what} although neither its agent nor Proxmox gave an answer")
        elif told.get("containers at observation", {}).get(server.vmid, "absent") not in ("stopped", "absent"):
            self.broken(f"{what} although its agent gave no answer, and its container runs")

    def _rest(self, told: Mapping[str, Any], intent: Intent, what: str, *, proxmox_unknown: bool) -> None:
        """Until its deadline, what an interrupted step left behind may still be under way: unknown counts as that."""
        step, deadline = told.get("steps at observation", {}).get(intent.operation_id, (None, None))
        if step is None or deadline is None or self.ledger.now_ms() + LOOK_MS > deadline:
            return
        server = self.ledger.servers.get(intent.server_id or "")
        dev = server is not None and server.ctype == "dev"
        if proxmox_unknown and (step in PROXMOX_STEPS or (dev and step in WORKLOAD_STEPS)):
            self.broken(f"{what} although Proxmox did not say whether a task of {step} runs")
        elif step in WORKLOAD_STEPS and not dev and intent.server_id not in told.get("answered at observation", {}):
            self.broken(f"{what} although its agent did not say whether a job of {step} runs")
