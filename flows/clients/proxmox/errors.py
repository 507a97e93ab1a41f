"""Proxmox's failures by status and literal text. Called by :mod:`session` alone, for what proxmoxer and requests raise.

The message is in the HTTP reason phrase or in the body's ``message``; ``session`` has put the fuller one into the phrase.
Texts are those of pve-manager 9.2, pve-container 6.1 and pve-http-server 6.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from proxmoxer.core import ResourceException

from flows.clients.http import fit
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadInput,
    Busy,
    Conflict,
    Forbidden,
    MisconfiguredSetting,
    NotFound,
    RateLimited,
    TaskFailed,
    Unauthorized,
    Unproven,
    Unreachable,
)

ALREADY_RUNNING = re.compile(r"\bCT \d+ already running\b")
NOT_RUNNING = re.compile(r"\bCT \d+ not running\b")
VMID_TAKEN = re.compile(r"\b(?:VM|CT) \d+ already exists")
#: Somebody else's lock, or a lock file that did not come free in time: the same call may succeed later.
LOCKED = re.compile(r"is locked \(|can't lock file|got lock (?:request )?timeout|trying to acquire (?:cfs )?lock|\bgot timeout\b")
NO_QUORUM = re.compile(r"no quorum\?|not quorate")
_NO_TASK = re.compile(r"no such task|unable to parse worker upid")
_RIGHT = re.compile(r"Permission check failed \((?P<path>/[^,)]*), (?P<right>[^)]+)\)")

_Make = Callable[[str, str], AutomationError]

#: First match wins. Everything here refused the call before any effect.
_BY_TEXT: tuple[tuple[re.Pattern[str], _Make], ...] = (
    (NO_QUORUM, lambda w, t: Busy(w, why=t, remedy="bring enough cluster nodes back: without quorum nothing can be changed")),
    (LOCKED, lambda w, t: Busy(w, why=t, remedy="wait for what holds the lock; `pct config` shows it")),
    (
        re.compile(r"detected modified configuration"),
        lambda w, t: Busy(w, why=t, remedy="somebody changed the container at the same time; look again"),
    ),
    (re.compile(r"^Configuration file '[^']*' does not exist"), lambda w, t: NotFound(w, why=t)),
    (
        re.compile(r"protection mode enabled"),
        lambda w, t: Conflict(w, why=t, remedy="a person protected it: `pct set <vmid> --protection 0` allows it"),
    ),
    (re.compile(r"container is running|can't overwrite running container"), lambda w, t: Conflict(w, why=t, remedy="stop it first")),
    (VMID_TAKEN, lambda w, t: Conflict(w, why=t, remedy="another VMID is needed: this one is in use")),
    (ALREADY_RUNNING, lambda w, t: Conflict(w, why=t)),
    (NOT_RUNNING, lambda w, t: Conflict(w, why=t)),
)


def text_of(error: ResourceException) -> str:
    return fit(error.content or error.status_message or "")


def field_errors(error: ResourceException) -> Mapping[str, str]:
    """``errors`` of a refused parameter, by field."""
    given = error.errors
    return {str(k): fit(v) for k, v in given.items()} if isinstance(given, Mapping) else {}


def _forbidden(what: str, text: str, token: str) -> Forbidden:
    match = _RIGHT.search(text)
    if match is None:
        return Forbidden(what, why=text or "403", remedy=f"give the token {token} the right it lacks; `zlh doctor` lists them")
    path, right = match["path"], match["right"]
    return Forbidden(
        what, why=f"the token {token} lacks {right} on {path}", remedy=f"`pveum acl modify {path} --tokens '{token}' --roles <role with {right}>`"
    )


def translate(error: ResourceException, what: str, *, write: bool, token: str) -> AutomationError:
    """``write``: whether the call may have had an effect. ``token`` is ``user@realm!name``, no secret."""
    status, text = int(error.status_code), text_of(error)
    if status == 401:
        return Unauthorized(
            what,
            why=f"Proxmox refused the API token {token} (401)",
            remedy="set ZLH_PROXMOX__TOKEN to the token's secret; check ZLH_PROXMOX__USER, ZLH_PROXMOX__TOKEN_NAME and the token's expiry",
        )
    if status == 403:
        return _forbidden(what, text, token)
    if 595 <= status <= 599 or status in (502, 503, 504):
        why = f"{status} {text}: the node that would carry it out gave no answer"
        return AmbiguousEffect(what, why=why, remedy="look at the object before acting again") if write else Unreachable(what, why=why)
    if status == 429:
        return RateLimited(what, why=text)
    fields = field_errors(error)
    if any(_NO_TASK.search(t) for t in (text, *fields.values())):
        return Unproven(what, why=text, remedy="a task's status is unknown for a moment after it began, and after its node was restarted")
    for pattern, make in _BY_TEXT:
        if pattern.search(text):
            return make(what, text)
    if status == 400:
        if any(VMID_TAKEN.search(v) for v in fields.values()):
            return Conflict(what, why=next(v for v in fields.values() if VMID_TAKEN.search(v)))
        name = next(iter(fields), "parameters")
        return BadInput(name, "(as sent)", why=f"{what}: {fields.get(name, text)}")
    if status == 501 or 300 <= status < 500:
        return MisconfiguredSetting(
            "ZLH_PROXMOX__HOST", why=f"{what}: {status} {text}", remedy="name a node of Proxmox VE 8 or newer; `zlh doctor` shows the version"
        )
    if write:
        return TaskFailed(what, why=f"{status} {text}", remedy="read the node's journal; the call may have had part of its effect")
    return Unreachable(what, why=f"{status} {text}")
