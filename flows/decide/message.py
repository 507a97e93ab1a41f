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
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_GOOD = frozenset({EventKind.REPAIR_SUCCEEDED, EventKind.PROVISIONING_SUCCEEDED, EventKind.PAYMENT_RECEIVED, EventKind.EPISODE_OVER})


def render(event: Event, *, limit: int = LIMIT, notice: str = "") -> str:
    """The whole message, at most ``limit`` characters. ``notice`` is added at its end.

    What does not fit is cut from the longest part first; the command and the notice are the last to suffer.
    """
    command = f"run: `{clean(event.command)}`" if event.command else ""
    tail = [clip(part, limit // 3) for part in (command, clean(notice)) if part]
    head = [f"**{clean(event.what)}**" if event.what else f"**{event.kind.value}**"]
    head += [f"{label}: {clean(text)}" for label, text in (("where", event.where), ("done", event.done)) if text]
    head += [clean(line) for line in lines_of(event)]
    if event.next:
        head.append(f"next: {clean(event.next)}")
    elif event.kind not in _GOOD and not event.command and not lines_of(event):
        head.append("next: nothing to do")
    room = limit - sum(size(part) + 1 for part in tail)
    return "\n".join([*_fit(head, room), *tail])


def line(event: Event) -> str:
    """One line about an event, for a batch of audit lines or the subjects of a folded burst. At most 200 characters."""
    parts = [event.what or event.kind.value, event.where, event.done]
    return clip(" · ".join(" ".join(clean(part).split()) for part in parts if part), 200)


def lines_of(event: Event) -> Sequence[str]:
    """The lines that a folded or batched event carries."""
    lines = event.facts.get("lines")
    return [str(item) for item in lines] if isinstance(lines, list | tuple) else []


def clean(text: str) -> str:
    """Without control characters (line feeds and tabs stay), lone surrogates and direction overrides, which could disguise a command."""
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI)).strip()


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


def _fit(parts: list[str], room: int) -> list[str]:
    """Cuts the longest parts first until all of them, joined by line feeds, fit."""
    parts = [part for part in parts if part]
    while (over := sum(size(part) + 1 for part in parts) - 1 - room) > 0:
        longest = max(range(len(parts)), key=lambda i: size(parts[i]))
        others = sorted((size(part) for part in parts), reverse=True)
        target = max(size(parts[longest]) - over, others[1] - 1 if len(others) > 1 else 0, 20)
        if target >= size(parts[longest]):  # all are short already: the last ones go
            parts.pop()
            continue
        parts[longest] = clip(parts[longest], target)
    return parts
