"""What the lab's receivers wrote down, and how they stand: the judges of who did what, however often it was asked. Of ``GET /state``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

State = Mapping[str, Any]


def bridge(state: State, method: str, name: str) -> list[Any]:
    return [c for c in state["parts"]["bridge"]["calls"] if c["method"] == method and c["name"] == name]


def done(calls: list[Any]) -> list[Any]:
    return [c for c in calls if c["effect"]]


def fenced(calls: list[Any]) -> list[Any]:
    return [c for c in calls if c["status"] == 412]


def changed(state: State, name: str) -> list[Any]:
    """Updates of the zone that changed the name."""
    if "cloudflare" in state["parts"]:
        return [w for w in state["parts"]["cloudflare"]["writes"] if name in w["names"]]
    return [u for u in state["parts"]["dns"]["updates"] if name in u["names"] and u["changed"]]


def unmet(state: State, name: str) -> list[Any]:
    """Updates of the name that were refused because it was not as seen. Cloudflare's double does not know whose records it did not find."""
    if "cloudflare" in state["parts"]:
        return [w for w in state["parts"]["cloudflare"]["writes"] if w["code"] in (81044, 81053, 81058)]
    return [u for u in state["parts"]["dns"]["updates"] if name in u["names"] and u["rcode"] in ("NXRRSET", "YXRRSET", "NXDOMAIN", "YXDOMAIN")]


def agent(state: State, vmid: int, path: str) -> list[Any]:
    """None of an agent whose container is gone."""
    return [c for c in state["parts"]["agents"]["agents"].get(str(vmid), {}).get("calls", ()) if c["path"] == path]


def registered(state: State, name: str) -> bool:
    return any(s["name"] == name for s in state["parts"]["bridge"]["servers"])


def records(state: State, name: str) -> set[str]:
    """Types of the name's records and of those that belong to it."""
    zone = state["parts"].get("cloudflare") or state["parts"]["dns"]
    return {str(r.get("rtype") or r["type"]) for r in zone["records"] if r["name"] == name or r["name"].endswith(f".{name}")}


def power(state: State, vmid: int, *orders: str) -> list[Any]:
    """What Proxmox was told to do with the container's power, and did: nothing that it refused. ``orders``: these alone."""
    calls = [w for w in state["parts"]["proxmox"]["writes"] if f"/lxc/{vmid}/status/" in w["call"] and w["status"] == 200]
    return [w for w in calls if not orders or w["call"].rpartition("/")[2] in orders]
