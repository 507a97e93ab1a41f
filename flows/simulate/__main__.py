"""One simulation, as a process of its own: see :func:`flows.simulate.running.child`; or scenarios, whose logs
are left in the directory: see :func:`flows.simulate.scenario.play_all`."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.simulate import running, scenario

if len(sys.argv) > 2:
    scenario.play_all([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]))
else:
    running.main(sys.argv[1])
