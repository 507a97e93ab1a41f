"""An agent's JSON as values. Hostile input: a customer with root in the container writes it. Pure; used by :mod:`agents` alone.

Every field is checked for type and range; unknown ones are dropped; text is cut and made printable, because it ends in logs and alerts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flows.clients.http import decode_object, fit
from flows.domain.agent import AgentStatus, WorkloadState
from flows.errors import BadAnswer

_STATES = {state.value: state for state in WorkloadState}
_MAX_ITEMS, _MAX_KEY = 32, 64
#: Largest number that means something in any field.
_MAX = 2**53
_REQUIRED = object()


def status(body: bytes, what: str) -> AgentStatus:
    """The answer of ``GET /status``. Raises BadAnswer naming the field."""
    answer = decode_object(what, body)
    state = _STATES.get(_text(answer, "state", what))
    if state is None:
        raise _bad(what, "state")
    return AgentStatus(
        server_id=_text(answer, "server_id", what),
        version=_text(answer, "version", what),
        state=state,
        ready=_flag(answer, "ready", what),
        operation=_optional_text(answer, "operation", what),
        maintenance=_flag(answer, "maintenance", what, False),
        uptime_s=float(_number(answer, "uptime_s", what, 0.0) or 0.0),
        restarts=_whole(answer, "restarts", what, 0) or 0,
        players=_whole(answer, "players", what, None),
        provisioning_complete=_flag(answer, "provisioning_complete", what, True),
        missing=_texts(answer, "missing", what),
        last_crash=_facts(answer, "last_crash", what),
    )


def health(body: bytes, what: str) -> Mapping[str, object]:
    """The answer of ``GET /health``: ``version``, ``started_at`` (Unix seconds or text), ``server_id``."""
    answer = decode_object(what, body)
    started = answer.get("started_at")
    if isinstance(started, bool) or not isinstance(started, str | int | float) or (isinstance(started, float) and not math.isfinite(started)):
        raise _bad(what, "started_at")
    return {
        "version": _text(answer, "version", what),
        "started_at": fit(started) if isinstance(started, str) else started,
        "server_id": _text(answer, "server_id", what),
    }


def _bad(what: str, name: str) -> BadAnswer:
    return BadAnswer(what, why=f"field {name} is missing or not of its kind", remedy="check the agent's version; the container may be compromised")


def _text(answer: Mapping[str, Any], name: str, what: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value or len(value) > 128 or fit(value) != value:
        raise _bad(what, name)
    return value


def _optional_text(answer: Mapping[str, Any], name: str, what: str) -> str | None:
    return None if answer.get(name) is None else _text(answer, name, what)


def _flag(answer: Mapping[str, Any], name: str, what: str, default: object = _REQUIRED) -> bool:
    value = answer.get(name, default)
    if not isinstance(value, bool):
        raise _bad(what, name)
    return value


def _number(answer: Mapping[str, Any], name: str, what: str, default: float | None) -> float | int | None:
    value = answer.get(name, default)
    if value is None and default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX:  # NaN fails the comparison
        raise _bad(what, name)
    return value


def _whole(answer: Mapping[str, Any], name: str, what: str, default: int | None) -> int | None:
    value = _number(answer, name, what, default)
    if value is not None and not isinstance(value, int):
        raise _bad(what, name)
    return value


def _texts(answer: Mapping[str, Any], name: str, what: str) -> tuple[str, ...]:
    value = answer.get(name, [])
    if not isinstance(value, list) or len(value) > _MAX_ITEMS or not all(isinstance(item, str) for item in value):
        raise _bad(what, name)
    return tuple(fit(item)[:128] for item in value)


def _facts(answer: Mapping[str, Any], name: str, what: str) -> Mapping[str, object] | None:
    """An object of scalars; what is nested is dropped."""
    value = answer.get(name)
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > _MAX_ITEMS:
        raise _bad(what, name)
    facts: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, str):
            facts[fit(key)[:_MAX_KEY]] = fit(item)
        elif item is None or isinstance(item, bool) or (isinstance(item, int | float) and abs(item) <= _MAX):
            facts[fit(key)[:_MAX_KEY]] = item
    return facts
