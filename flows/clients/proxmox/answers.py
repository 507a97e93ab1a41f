"""Proxmox's JSON as values of :mod:`flows.domain.sources`. Pure. Whatever does not have the expected shape is BadAnswer: a list
that lost a part must not look like a shorter list. Called by :mod:`client`, :mod:`absence` and :mod:`tasks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flows.clients.http import fit
from flows.domain.sources import Container, ContainerConfig, RunningTask
from flows.errors import BadAnswer

_UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<pid>[0-9A-Fa-f]{8,9}):(?P<pstart>[0-9A-Fa-f]{8,}):(?P<start>[0-9A-Fa-f]{8}):(?P<kind>[\w.-]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):"
)
_STATUSES = frozenset({"running", "stopped"})
_TAG_SPLIT = re.compile(r"[;, ]+")
#: Tasks after which a container is stopped because somebody wished so.
_STOPS = frozenset({"vzstop", "vzshutdown"})
#: Tasks that begin its running anew.
_STARTS = frozenset({"vzstart", "vzreboot"})


@dataclass(frozen=True, slots=True)
class Upid:
    """``started_s`` is Unix seconds by the node's clock; ``user`` is ``user@realm`` or ``user@realm!token``."""

    text: str
    node: str
    started_s: int
    kind: str
    vmid: int | None
    user: str


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A line of a task list. ``exitstatus`` is empty while it runs."""

    upid: Upid
    running: bool
    ended_s: int
    exitstatus: str


def upid(text: object, what: str) -> Upid:
    """Raises BadAnswer: without a UPID nothing can be waited for."""
    match = _UPID.fullmatch(text) if isinstance(text, str) and len(text) < 300 else None
    if match is None:
        raise BadAnswer(what, why=f"{fit(text)[:80]!r} is not a UPID")
    vmid = int(match["id"]) if match["id"].isascii() and match["id"].isdigit() else None
    return Upid(match[0], match["node"], int(match["start"], 16), match["kind"], vmid, match["user"])


def rows(data: object, what: str) -> list[Mapping[str, Any]]:
    """A list of objects."""
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise BadAnswer(what, why="the answer is not a list of objects")
    return data


def row(data: object, what: str) -> Mapping[str, Any]:
    """One object."""
    if not isinstance(data, dict):
        raise BadAnswer(what, why="the answer is not an object")
    return data


def truth(value: object) -> bool:
    """Proxmox's booleans: 0 and 1, as number or text."""
    return value in (True, 1, "1", "yes", "on", "true")


def number(value: object, what: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"-?\d{1,18}", str(value)):
        raise BadAnswer(what, why=f"{name} is {fit(value)[:40]!r}, not a number")
    return int(value)


def text(value: object, what: str, name: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 8192:
        raise BadAnswer(what, why=f"{name} is missing or no text")
    return value


def tags(value: object) -> frozenset[str]:
    return frozenset(t for t in _TAG_SPLIT.split(value.lower()) if t) if isinstance(value, str) else frozenset()


def containers(data: object, what: str) -> tuple[dict[int, Container], frozenset[int]]:
    """LXC containers by VMID, and VMIDs that two guests of the cluster share. Virtual machines count for the latter alone."""
    found: dict[int, Container] = {}
    seen: set[int] = set()
    twice: set[int] = set()
    for item in rows(data, what):
        kind = text(item.get("type"), what, "type")
        if kind not in ("lxc", "qemu"):
            continue
        vmid = number(item.get("vmid"), what, "vmid")
        (twice if vmid in seen else seen).add(vmid)
        if kind == "qemu":
            continue
        status = item.get("status")
        lock = item.get("lock")
        found[vmid] = Container(
            vmid=vmid,
            node=text(item.get("node"), what, f"node of {vmid}"),
            status=str(status) if status in _STATUSES else "unknown",
            name=str(item.get("name") or "")[:255],
            tags=tags(item.get("tags")),
            lock=str(lock)[:64] if lock else None,
            uptime_s=number(item.get("uptime") or 0, what, f"uptime of {vmid}"),
            template=truth(item.get("template")),
        )
    return found, frozenset(twice)


def guests(data: object, vmid: int, what: str) -> list[tuple[str, str]]:
    """Kind and node of every guest that has a VMID."""
    found = []
    for item in rows(data, what):
        kind = text(item.get("type"), what, "type")
        if kind in ("lxc", "qemu") and number(item.get("vmid"), what, "vmid") == vmid:
            found.append((kind, text(item.get("node"), what, f"node of {vmid}")))
    return found


def nodes(data: object, what: str) -> tuple[dict[str, bool], bool]:
    """``/cluster/status``: nodes and whether each is online, and whether the cluster is quorate. A standalone node, which has no
    ``cluster`` entry, counts as quorate."""
    quorate = True
    online: dict[str, bool] = {}
    for item in rows(data, what):
        kind = text(item.get("type"), what, "type")
        if kind == "cluster":
            quorate = quorate and truth(item.get("quorate"))
        elif kind == "node":
            online[text(item.get("name"), what, "name of a node")] = truth(item.get("online"))
    if not online:
        raise BadAnswer(what, why="it names no node, not even itself")
    return online, quorate


def task_entries(data: object, what: str) -> list[TaskEntry]:
    """A task list. A running one has neither end nor status (some lists say ``RUNNING``)."""
    entries = []
    for item in rows(data, what):
        ended = number(item.get("endtime") or 0, what, "endtime")
        status = str(item.get("status") or "")
        running = not ended and status in ("", "RUNNING", "running")
        entries.append(TaskEntry(upid(item.get("upid"), what), running, ended, "" if running else fit(status)))
    return entries


def succeeded(exitstatus: str) -> bool:
    """Exactly ``OK`` or ``WARNINGS: n``."""
    head, separator, count = exitstatus.partition(": ")
    return exitstatus == "OK" or (head == "WARNINGS" and bool(separator) and count.isascii() and count.isdigit())


def running_tasks(entries: Iterable[TaskEntry]) -> tuple[RunningTask, ...]:
    return tuple(RunningTask(e.upid.text, e.upid.node, e.upid.kind, e.upid.vmid, e.upid.user) for e in entries if e.running)


def last_stops(entries: Iterable[TaskEntry]) -> dict[int, str]:
    """VMID → user of the stop or shutdown task that began last. One that a later start has undone explains nothing any more."""
    newest: dict[int, Upid] = {}
    started: dict[int, int] = {}
    for entry in entries:
        u = entry.upid
        if u.vmid is None:
            continue
        if u.kind in _STOPS and (u.vmid not in newest or newest[u.vmid].started_s <= u.started_s):
            newest[u.vmid] = u
        if u.kind in _STARTS and (entry.running or succeeded(entry.exitstatus)):
            started[u.vmid] = max(u.started_s, started.get(u.vmid, 0))
    return {vmid: u.user for vmid, u in newest.items() if started.get(vmid, 0) <= u.started_s}


def config(data: object, vmid: int, what: str) -> ContainerConfig:
    raw = row(data, what)
    lock = raw.get("lock")
    description = raw.get("description") or ""
    if not isinstance(description, str):
        raise BadAnswer(what, why="description is no text")
    return ContainerConfig(
        vmid=vmid,
        description=description.strip(),
        tags=tags(raw.get("tags")),
        lock=str(lock)[:64] if lock else None,
        digest=str(raw.get("digest") or ""),
        raw=dict(raw),
    )


def properties(value: object) -> dict[str, str]:
    """``name=eth0,bridge=vmbr0`` → a mapping. A first part without ``=`` (a volume) has the key ``""``."""
    found: dict[str, str] = {}
    for part in str(value or "").split(","):
        key, separator, rest = part.partition("=")
        if separator:
            found[key.strip()] = rest.strip()
        elif part.strip():
            found.setdefault("", part.strip())
    return found


def size_gb(value: str | None) -> float:
    """``8G`` → 8.0; 0 where there is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", value or "")
    if match is None:
        return 0.0
    return float(match[1]) * {"": 1 / 2**30, "K": 1 / 2**20, "M": 1 / 1024, "G": 1.0, "T": 1024.0}[match[2]]
