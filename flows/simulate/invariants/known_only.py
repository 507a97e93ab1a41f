"""``known_only``: no repair was derived from an unknown source."""

from __future__ import annotations

from collections.abc import Mapping

from flows.simulate.invariants.base import Invariant
from flows.simulate.ledger import Intent
from flows.simulate.loop import Process

#: What each check's repair must have seen, besides the database; a check that is not here only reports. ``agent``: its own server's answer;
#: ``workload``: that answer, or that Proxmox says its container is stopped; ``running``: that Proxmox says its container runs.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "dns_record": ("dns",), "dns_stale_record": ("dns",), "proxy_registration": ("proxy",), "proxy_stale_registration": ("proxy",),
    "operation_unsubmitted": ("engine",), "billing_suspended": ("agent",), "agent_offline": ("proxmox", "running"),
    "workload_stopped": ("proxmox", "workload"), "workload_error": ("agent",), "container_missing": ("proxmox",),
    "container_orphaned": ("proxmox",), "operation_orphaned": (), "stuck_provisioning": (), "cleanup_required": (), "source_drift": (),
}  # fmt: skip


class KnownOnly(Invariant):
    name = "known_only"

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if process is None or process.kind != "sweep":
            return
        if "sources" in tables:
            process.told["unknown at observation"] = frozenset(process.told.get("unknown", ()))
            process.told["answered at observation"] = frozenset(process.told.get("answered", ()))
            process.told["containers at observation"] = process.told.get("containers", {})
        for intent in self.ledger.fresh:
            self._judge(process, intent)

    def _judge(self, process: Process, intent: Intent) -> None:
        unknown = process.told.get("unknown at observation", frozenset()) | ({"proxmox"} if process.told.get("lied to") else frozenset())
        answered = process.told.get("answered at observation", frozenset())
        server = self.ledger.servers.get(intent.server_id or "")
        status = process.told.get("containers at observation", {}).get(server.vmid if server else 0, "unknown")
        needs = NEEDS.get(intent.check)
        if needs is None:
            self.broken(f"{intent.action} of {intent.subject} was ordered for {intent.check}, which only reports")
            return
        if intent.check == "source_drift":
            needs = (intent.subject.removeprefix("source:"),)
        for source in needs:
            if source == "running":
                if status != "running":
                    self.broken(f"{intent.action} of {intent.subject} was ordered although its container was {status}")
            elif source == "agent" or (source == "workload" and status != "stopped"):
                if intent.server_id not in answered:
                    self.broken(f"{intent.action} of {intent.subject} was ordered although its agent gave no answer")
            elif source == "workload":
                continue
            elif source in unknown:
                self.broken(f"{intent.action} of {intent.subject} was ordered although {source} was unknown")
