"""``zlh lease hold``: beats while a real process lives, gives back at its end, and ends it when the lease is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.domain.lease import Lease, LeaseKind
from flows.state import leases
from flows.state.database import Tx

from .conftest import Fleet, Said


@pytest.fixture
def work() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a process that lasts so many seconds, in a session of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(seconds: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", seconds], start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def lease(write: Callable[..., Any], fleet: Fleet) -> Callable[[], Lease]:
    async def look(tx: Tx) -> Lease | None:
        return await leases.get(tx, fleet.ids["moss"])

    return lambda: write(look)


@pytest.fixture(autouse=True)
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_TIMING__HEARTBEAT_S", "0.1")


def test_it_beats_while_the_process_lives_and_gives_back_at_its_end(zlh: Callable[..., Said], lease: Callable[[], Lease], work: Any) -> None:
    seen: list[Lease] = []
    process = work("30")

    def watch() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (seen and seen[-1].heartbeat_at > seen[-1].taken_at):
            held = lease()
            seen.extend([held] if held is not None and held.holder else [])
            time.sleep(0.05)
        process.kill()

    thread = threading.Thread(target=watch)
    thread.start()
    said = zlh("lease", "hold", "moss", "--pid", str(process.pid), "--kind", "backup", "--reason", "by hand", "--json")
    thread.join()
    assert said.status == 0, said.err
    taken = json.loads(said.out)
    assert (taken["kind"], taken["reason"]) == ("backup", "by hand")
    assert seen[-1].heartbeat_at > seen[-1].taken_at
    assert lease().holder is None


@pytest.mark.parametrize("end", [True, False])
def test_a_lost_lease_is_said_and_ends_the_work_on_request(
    zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any], lease: Callable[[], Lease], work: Any, end: bool
) -> None:
    process = work("30")

    async def revoke(tx: Tx) -> None:
        await leases.revoke(tx, fleet.ids["moss"])

    def lose() -> None:
        while (held := lease()) is None or held.holder is None:
            time.sleep(0.05)
        write(revoke)

    thread = threading.Thread(target=lose)
    thread.start()
    said = zlh("lease", "hold", "moss", "--pid", str(process.pid), *(["--end"] if end else []))
    thread.join()
    assert said.status == 1
    assert "lease of moss · lost: " in said.err
    assert f"process {process.pid} {'was told to end' if end else 'must stop'}" in said.err
    if end:
        assert process.wait(10) == -signal.SIGTERM
    else:
        assert process.poll() is None


def test_stopped_before_the_work_it_leaves_the_lease_to_expire(zlh: Callable[..., Said], lease: Callable[[], Lease], work: Any) -> None:
    process = work("30")

    def stop() -> None:
        while (held := lease()) is None or held.holder is None or held.heartbeat_at == held.taken_at:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    said = zlh("lease", "hold", "moss", "--pid", str(process.pid))
    thread.join()
    assert said.status == 1
    assert f"stopped while process {process.pid} lives" in said.err
    assert (lease().kind, lease().holder is None) == (LeaseKind.PATCH, False)


def test_what_does_not_live_holds_nothing(zlh: Callable[..., Said], fleet: Fleet, work: Any) -> None:
    process = work("0")
    process.wait()
    said = zlh("lease", "hold", "moss", "--pid", str(process.pid))
    assert said.status == 2
    assert "there is no such process" in said.err


def test_an_operation_in_the_way_is_named(zlh: Callable[..., Said], fleet: Fleet) -> None:
    said = zlh("lease", "hold", "fern", "--pid", str(os.getpid()))
    assert said.status == 1
    assert fleet.ids["operation"] in said.err


async def _abandon(tx: Tx, server_id: str, kind: LeaseKind, ttl_ms: int) -> Lease:
    return await leases.take(tx, server_id, kind, "cli:somebody", ttl_ms, reason="half done")


def test_what_somebody_left_is_released_by_another_person(
    zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any], lease: Callable[[], Lease]
) -> None:
    left = write(lambda tx: _abandon(tx, fleet.ids["moss"], LeaseKind.PATCH, -1))
    asked = zlh("lease", "release", "moss")
    assert asked.status == 2 and "--yes" in asked.err and "cli:somebody" in asked.err and lease().holder is not None
    said = zlh("lease", "release", "moss", "--yes")
    assert said.status == 0, said.err
    assert lease().holder is None and lease().token > left.token  # whoever comes back is fenced
    (line,) = [json.loads(each) for each in zlh("audit", "--action", "lease.release", "--json").out.splitlines()]
    assert line["server"] == "moss" and line["detail"] == {"held_by": "cli:somebody", "kind": "patch", "reason": "half done"}
    assert zlh("lease", "release", "moss", "--yes").status == 1


@pytest.mark.parametrize(
    ("kind", "ttl_ms", "why"),
    [(LeaseKind.PATCH, 60_000, "still held"), (LeaseKind.MAINTENANCE, -1, "maintenance"), (LeaseKind.OPERATION, -1, "operation")],
)
def test_no_other_lease_is_released(
    zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any], lease: Callable[[], Lease], kind: LeaseKind, ttl_ms: int, why: str
) -> None:
    taken = write(lambda tx: _abandon(tx, fleet.ids["moss"], kind, ttl_ms))
    said = zlh("lease", "release", "moss", "--yes")
    assert said.status == 1 and why in said.err
    assert lease() == taken
