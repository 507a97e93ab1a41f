"""Leases: each has an owner that lives, but for an expired one that anybody may take. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flows.decide.validate import mend
from flows.decide.validate.identity import problem
from flows.decide.validate.states import minutes
from flows.domain.lease import BLOCKS_WHEN_EXPIRED, FREE_WHEN_EXPIRED, LeaseKind
from flows.domain.operation import LIVE_STATES
from flows.domain.records import LeaseRecord, Limits, Records
from flows.domain.server import ServerState
from flows.domain.validation import Problem

_LIVE = frozenset(s.value for s in LIVE_STATES)
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def problems(records: Records, limits: Limits) -> Iterator[Problem]:
    for lease in records.leases:
        why, remedy = _wrong(lease, records.now, limits)
        if why:
            objects = (f"leases:{lease.subject}", *((f"operations:{lease.operation_id}",) if lease.operation_id else ()))
            yield problem("lease_without_owner", objects, f"{_said(lease)} {why}", remedy)


def _said(lease: LeaseRecord) -> str:
    return f"the {lease.kind or 'unnamed'} lease of {lease.subject}" + (f", held by {lease.holder}," if lease.holder else "")


def _wrong(lease: LeaseRecord, now: int, limits: Limits) -> tuple[str, str]:
    """What is wrong with it, and what mends it; empty: nothing."""
    nobody = {"kind": None, "holder": None, "operation_id": None, "reason": "", "expires_at": 0}
    free = mend.update("leases", ("subject", lease.subject), token=mend.Expression("token + 1"), **nobody)
    if lease.holder is None or lease.kind is None:
        return "is half given back: " + ("nobody holds it" if lease.holder is None else "its kind is missing"), free
    if _ID.fullmatch(lease.subject) and lease.server_state is None:
        return "is of a server that does not exist", free
    if lease.server_state == ServerState.DELETED.value:
        return "is of a server that is deleted", free
    over = now - lease.expires_at
    if lease.kind == LeaseKind.OPERATION.value:
        if lease.operation_id is None or lease.operation_state is None:
            return "names no operation", free
        if lease.operation_state not in _LIVE:
            return f"is of operation {lease.operation_id}, which is {lease.operation_state}", free
    if over <= limits.grace_ms or lease.kind in FREE_WHEN_EXPIRED:
        return "", ""
    if lease.kind in BLOCKS_WHEN_EXPIRED:
        return f"expired {minutes(over)} ago and still blocks the server", f"zlh leases show {lease.subject}; resume its work, or {free}"
    return f"expired {minutes(over)} ago and no sweep took it up", "zlh reconcile; zlh status"
