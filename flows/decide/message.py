"""The text of a message: what, where, what was done, what happens next, what a person can do. Pure.

Called by :mod:`flows.report.dispatch` and the watchdog right before sending. Markup in the texts is left alone: the notifier
allows no mentions but the operator's, so an ``@everyone`` in a log's tail pings nobody.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from flows.domain.event import Event, EventKind

#: Discord's limit, in characters as Discord counts them (UTF-16 code units at worst).
LIMIT = 2_000
_MARK = "…"
#: Parts are not cut below this before the command and its like are.
_SHORT = 20
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_GOOD = frozenset({EventKind.REPAIR_SUCCEEDED, EventKind.PROVISIONING_SUCCEEDED, EventKind.PAYMENT_RECEIVED, EventKind.EPISODE_OVER})


def render(event: Event, *, limit: int = LIMIT, notice: str = "") -> str:
    """The whole message, at most ``limit`` characters. ``notice`` is added at its end.

    What does not fit is cut: lines from the last, then the longest part; the command and the notice are the last to suffer.
    """
    command = f"run: `{clean(event.command)}`" if event.command else ""
    tail = [clip(part, limit // 3) for part in (command, clean(notice)) if part]
    head = [f"**{clean(event.what) or event.kind.value}**"]
    head += [f"{label}: {clean(text)}" for label, text in (("where", event.where), ("done", event.done)) if text]
    lines = [clean(text) for text in lines_of(event)]
    if event.next:
        tail.insert(0, f"next: {clean(event.next)}")
    elif event.kind not in _GOOD and not event.command and not lines:
        tail.insert(0, "next: nothing to do")
    fixed = _fit([*head, *tail], limit, spare=len(tail))
    head, tail = fixed[: len(head)], fixed[len(head) :]
    return "\n".join([*head, *_first(lines, limit - sum(size(part) + 1 for part in fixed)), *tail])


def line(event: Event) -> str:
    """One line about an event, for a batch of audit lines or the subjects of a folded burst. At most 200 characters."""
    parts = [event.what or event.kind.value, event.where, event.done]
    return clip(" · ".join(" ".join(clean(part).split()) for part in parts if part), 200)


def lines_of(event: Event) -> Sequence[str]:
    """The lines that a folded or batched event carries."""
    lines = event.facts.get("lines")
    return [str(item) for item in lines] if isinstance(lines, list | tuple) else []


def clean(text: str) -> str:
    """Its first 10,000 characters, without control characters (line feeds and tabs stay), lone surrogates, and direction overrides,
    which could disguise a command."""
    return "".join(c for c in text[:10_000] if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI)).strip()


def size(text: str) -> int:
    """Length as Discord counts: UTF-16 code units."""
    return len(text) + sum(c > "\uffff" for c in text)


def clip(text: str, limit: int) -> str:
    """At most ``limit`` code units, with an ellipsis where something was cut."""
    if size(text) <= limit:
        return text
    kept, used = [], size(_MARK)
    for c in text:
        used += size(c)
        if used > limit:
            break
        kept.append(c)
    return "".join(kept) + _MARK


def _first(lines: Sequence[str], room: int) -> list[str]:
    """As many of the lines as fit, and how many do not."""
    if sum(size(line) + 1 for line in lines) <= room:
        return list(lines)
    kept: list[str] = []
    for number, text in enumerate(lines):
        more = f"{_MARK} and {len(lines) - number} more"
        if sum(size(part) + 1 for part in (*kept, text, more)) > room:
            return [*kept, more] if sum(size(part) + 1 for part in (*kept, more)) <= room else kept
        kept.append(text)
    return kept


def _fit(parts: Sequence[str], room: int, *, spare: int) -> list[str]:
    """Cuts the longest parts to one length at which all of them, joined by line feeds, fit; the last ``spare`` ones only if need be."""
    room -= len(parts) - 1
    rest = parts[len(parts) - spare :]
    cap = _cap([size(part) for part in parts[: len(parts) - spare]], room - sum(size(part) for part in rest))
    if cap is not None and cap < _SHORT:
        cap = _cap([size(part) for part in parts], room)
        rest = []
    return list(parts) if cap is None else [*(clip(part, cap) for part in parts[: len(parts) - len(rest)]), *rest]


def _cap(sizes: Sequence[int], room: int) -> int | None:
    """The largest length that all may have so that they fit into ``room``; None where they do as they are."""
    if sum(sizes) <= room:
        return None
    for number, length in enumerate(ordered := sorted(sizes)):
        if length * (len(ordered) - number) > room:
            return max(room // (len(ordered) - number), 1)
        room -= length
    return None
