"""Where a sweep and its repair may stand still, or die: points of :mod:`tests.support.loop_controller`, by the kind of drift that it heals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pytest

from tests.support.drifts import DRIFTS, Kind

#: ``{call}`` and ``{action}`` are the drift's. In the middle of a transaction it holds that one's locks.
SWEEP: Mapping[str, str] = {
    "begin": "tx:epochs.begin:commit",
    "begun": "tx:epochs.begin:done",
    "renewal": "tx:epochs.renew:commit",
    "recording": "tx:sweep._record:commit",
    "recorded": "tx:sweep._record:done",
    "finishing": "tx:sweep._finish:commit",
}
REPAIR: Mapping[Kind, Mapping[str, str]] = {
    Kind.LEASED: {
        "intent": "tx:repair._intent:commit",
        "intended": "repair:{action}:intent",
        "before": "call:{call}:before",
        "inside": "",
        "after": "call:{call}:after",
        "effect": "repair:{action}:effect",
        "outcome": "tx:repair._outcome:commit",
        "told": "tx:repair._outcome:done",
    },
    Kind.ORDERED: {"ordering": "tx:repair._ordered:commit", "ordered": "repair:{action}:intent"},
    Kind.REVOKED: {"order": "tx:repair._operation:commit", "ordered": "repair:{action}:effect"},
    Kind.SUBMITTED: {
        "intent": "tx:repair._submission:commit",
        "intended": "repair:{action}:intent",
        "taking": "tx:submission._take:commit",
        "before": "call:{call}:before",
        "after": "call:{call}:after",
        "noting": "tx:submission._judge:commit",
        "outcome": "tx:repair._outcome:commit",
    },
}


def cells(always: Collection[tuple[str, str]]) -> Iterator[Any]:
    """Drift × phase × point, as a test's parameters. Those in ``always`` run in every change, the others in ``make soak``."""
    for name, drift in DRIFTS.items():
        for phase, point in {**SWEEP, **REPAIR[drift.kind]}.items():
            marks = [] if (name, phase) in always else [pytest.mark.soak]
            yield pytest.param(name, phase, point, id=f"{name}-{phase}", marks=marks)
