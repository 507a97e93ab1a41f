"""One simulation, as a process of its own: see :func:`flows.simulate.running.child`; or one scenario, whose log goes to stdout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flows.simulate import running, scenario

if len(sys.argv) > 2:
    sys.stdout.write(scenario.play(scenario.load(Path(sys.argv[2])), Path(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)
running.main(sys.argv[1])
