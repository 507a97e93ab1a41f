"""Why the game died: a class for every end that nobody asked for, and its record. Used by ``supervisor``."""

from __future__ import annotations

import re
import time
from typing import Any

from zlh_agent.unit import Exit

_OOM = re.compile(r"java\.lang\.OutOfMemoryError|insufficient memory for the Java Runtime")
_MISSING = re.compile(
    r"which is missing|Missing or unsupported mandatory dependencies|requires .{1,200} but none is available|UnknownDependencyException"
)
_MOD = re.compile(
    r"Mod resolution encountered|Mod resolution failed|FormattedException|Mixin apply .{0,200}failed|InvalidMixinException"
    r"|Error occurred while enabling|Could not load '.{1,200}' in folder|Failed to load mod"
)
#: Lines of output in a crash record, and characters in all.
TAIL_LINES, TAIL = 30, 2000


def report(kind: str, why: str, end: Exit, up_s: float, tail: tuple[str, ...]) -> dict[str, Any]:
    """``last_crash`` of ``GET /status``, but for ``count``, how many it were in a row."""
    return {
        "class": kind,
        "at": time.time(),
        "count": 0,
        "uptime_s": round(up_s, 3),
        "exit_code": end.code,
        "signal": end.signal,
        "detail": why[:500],
        "log_tail": "\n".join(tail[-TAIL_LINES:])[-TAIL:],
    }


def classify(end: Exit, tail: tuple[str, ...], oom_killed: bool) -> str:
    """``oom``, ``missing_dependency``, ``mod_or_plugin_error``, ``nonzero_exit`` or ``unexpected_exit``: the first that fits.

    ``oom_killed``: the kernel killed something in the container for want of memory while it ran.
    """
    text = "\n".join(tail)
    if end.oom or _OOM.search(text) or (oom_killed and (end.signal == 9 or end.code == 137)):
        return "oom"
    failed = bool(end.code or end.signal)
    if failed and _MISSING.search(text):
        return "missing_dependency"
    if failed and _MOD.search(text):
        return "mod_or_plugin_error"
    return "nonzero_exit" if end.code else "unexpected_exit"
