"""One simulation, as a process of its own: see :func:`flows.simulate.running.child`."""

from __future__ import annotations

import sys

from flows.simulate.running import main

main(sys.argv[1])
