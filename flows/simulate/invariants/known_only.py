"""``known_only``: no repair was derived from an unknown source."""

from __future__ import annotations

from collections.abc import Mapping

from flows.simulate.invariants.base import Invariant
from flows.simulate.ledger import Intent
from flows.simulate.loop import Process

#: What a check's repair must have seen; an agent's answer by its own server.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "dns_record": ("dns",), "dns_stale_record": ("dns",), "proxy_registration": ("proxy",), "proxy_stale_registration": ("proxy",),
    "operation_unsubmitted": ("engine",), "billing_suspended": ("agent",), "agent_offline": ("proxmox",), "workload_stopped": ("proxmox",),
    "container_missing": ("proxmox",), "container_orphaned": ("proxmox",),
}  # fmt: skip


class KnownOnly(Invariant):
    name = "known_only"

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if process is None or process.kind != "sweep":
            return
        if "sources" in tables:
            process.told["unknown at observation"] = frozenset(process.told.get("unknown", ()))
            process.told["answered at observation"] = frozenset(process.told.get("answered", ()))
        for intent in self.ledger.fresh:
            self._judge(process, intent)

    def _judge(self, process: Process, intent: Intent) -> None:
        unknown = process.told.get("unknown at observation", frozenset()) | ({"proxmox"} if process.told.get("lied to") else frozenset())
        needs = NEEDS.get(intent.check, ())
        if intent.check == "source_drift":
            needs = (intent.subject.removeprefix("source:"),)
        for source in needs:
            if source == "agent":
                if intent.server_id not in process.told.get("answered at observation", frozenset()):
                    self.broken(f"{intent.action} of {intent.subject} was ordered although its agent gave no answer")
            elif source in unknown:
                self.broken(f"{intent.action} of {intent.subject} was ordered although {source} was unknown")
