"""The tests' own servers leave nothing behind, however their test ends, and stand side by side."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import servers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]
KINDS = ("MariaDB", "PostgreSQL", "Redis")
_PROGRAM = """
import sys, time
from tests.support import servers
server = getattr(servers, sys.argv[1])()
server.start()
print(server.pid, server.directory, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_tests_server_dies_with_it(kind: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, kind], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, directory = process.stdout.readline().split()
        family = [int(pid), *servers.children(int(pid))]
        process.kill()
    end = time.monotonic() + 60
    while left := [p for p in family if _alive(p)]:
        assert time.monotonic() < end, f"{left} live on"
        time.sleep(0.05)
    servers.remove_abandoned()
    assert not Path(directory).exists()


def test_two_of_a_kind_at_once() -> None:
    with ExitStack() as stack:
        two = [stack.enter_context(servers.running(servers.MariaDB())) for _ in range(2)]
        assert len({server.port for server in two}) == len({server.directory for server in two}) == 2
        servers.remove_abandoned()
        assert all(server.directory.exists() for server in two)
    assert not any(server.directory.exists() for server in two)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
