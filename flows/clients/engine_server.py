"""The Prefect server in this process, with its garbage collected in a thread beside the event loop. ``python -m flows.clients.engine_server``.

Started by ``zlh up`` and the server's unit in place of ``prefect server start``, because with SQLite that stands still for a minute at a time
under load (3.8.8, found with py-spy): the collector, run by chance in the event loop's thread, frees a dead cursor, whose ``sqlite3_reset``
needs the mutex of a connection that another thread holds while it waits up to 60 s for the write lock, whose holder needs the event loop.
In a thread of its own the collector may wait for that mutex: nobody waits for it.
"""

from __future__ import annotations

import gc
import itertools
import runpy
import sys
import threading
import time

#: Seconds between two collections of young objects, and how many of those make one of all: that takes half a second of processor time,
#: since what the server imports is a million objects, and cursors die young.
COLLECT_S, ROUNDS = 2.0, 30


def collect_aside() -> None:
    """From now on no thread but one of its own collects cycles."""
    gc.disable()

    def collect() -> None:
        for count in itertools.count(1):
            time.sleep(COLLECT_S)
            gc.collect(1 if count % ROUNDS else 2)

    threading.Thread(target=collect, name="garbage", daemon=True).start()


def main() -> None:
    """Does not return before the server ends."""
    collect_aside()
    sys.argv = ["prefect", "server", "start"]
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main()
