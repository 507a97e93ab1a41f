"""The agent in a real container, over a systemd unit, killed with -9 wherever it matters. One container for the file, in order."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from flows.cli.agents import FORGET
from flows.clients import ssh
from flows.domain.agent import WorkloadState
from flows.errors import Busy, Conflict, Fenced, Unreachable
from tests.support.agent_house import House, opened

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with opened(tmp_path_factory.mktemp("agt")) as house:
        house.install()
        yield house


@pytest.fixture
def game(house: House) -> Iterator[House]:
    """A prepared game that does not run, and an agent that does."""
    if house.box.execute("test -e /etc/zlh/game.toml").code != 0:
        house.prepare()
    house.mode("")
    house.revive()
    house.box.sh("systemctl kill -s KILL zlh-game; rm -f /srv/game/starts /srv/game/saved; touch /srv/game/starts; chown -R nobody /srv/game")
    house.box.sh("rm -f /var/lib/zlh-agent/game.json; systemctl restart zlh-agent")
    house.until("stopped")
    yield house


def test_an_unprepared_container_says_what_is_missing(house: House) -> None:
    found = house.until("stopped")
    assert not found.provisioning_complete and "game.toml" in found.missing[0]
    with pytest.raises(Conflict, match="not prepared"):
        house.order("start", 1)


def test_from_inside_root_alone_reaches_the_agent(house: House) -> None:
    connect = f"""python3 -c "import socket; socket.create_connection(('{house.box.address}', 18888), timeout=2)" """
    assert house.box.execute(connect).code == 0
    refused = house.box.execute(f"setpriv --reuid=nobody --regid=nogroup --clear-groups {connect}")
    assert refused.code != 0 and b"TimeoutError" in refused.err
    assert house.box.sh("systemctl show -P LimitNOFILE zlh-agent") == "65536"


def test_a_start_ends_at_ready_and_a_stop_saves(game: House) -> None:
    game.order("start")
    found = game.until("running", ready=True)
    assert found.players == 3 and found.provisioning_complete and found.missing == ()
    game.order("start")
    assert game.starts == 1
    game.order("stop")
    game.until("stopped", ready=False)
    game.box.sh("test -e /srv/game/saved")
    assert game.box.execute("systemctl is-active zlh-game").code != 0


def test_the_fence_holds_over_the_agents_restart(game: House) -> None:
    game.order("stop", 500)
    game.revive()
    game.until("stopped")
    with pytest.raises(Fenced, match="older than 500"):
        game.order("start", 499)
    assert game.starts == 0
    kind, key = (game.box.directory / "known_hosts").read_text().split()[1:]
    asyncio.run(ssh.command(game.box.address, FORGET, key=game.box.directory / "id", host_keys={kind: key}))
    game.order("stop", 1)
    with pytest.raises(Unreachable, match="verification failed"):
        other = "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        asyncio.run(ssh.command(game.box.address, FORGET, key=game.box.directory / "id", host_keys={kind: other}))


def test_the_game_outlives_its_agent_console_and_all(game: House) -> None:
    game.order("start")
    game.until("running", ready=True)
    pid = game.pid()
    game.kill()
    assert game.pid() == pid
    game.revive()
    found = game.until("running", ready=True)
    assert (game.pid(), game.starts, found.restarts) == (pid, 1, 0)
    game.order("stop")
    game.until("stopped")
    game.box.sh("test -e /srv/game/saved")


def test_a_start_is_finished_after_a_kill(game: House) -> None:
    game.mode("mute")
    game.order("start")
    game.box.until("test -s /srv/game/starts")
    game.kill()
    game.mode("")
    game.box.sh("systemctl kill -s KILL zlh-game")
    game.revive()
    game.until("running", ready=True)
    assert game.starts == 2


def test_a_stop_is_finished_after_a_kill(game: House) -> None:
    game.mode("deaf")
    game.order("start")
    game.until("running", ready=True)
    game.order("stop")
    game.kill()
    assert game.box.execute("systemctl is-active zlh-game").code == 0
    game.revive()
    game.until("stopped")
    assert game.box.execute("systemctl is-active zlh-game").code != 0
    time.sleep(0.5)  # nothing is waited for: a console that was not drained would start it again
    assert (game.starts, game.status().state) == (1, WorkloadState.STOPPED)


def test_a_pause_after_a_crash_goes_on_after_a_kill(game: House) -> None:
    game.order("start")
    game.until("running", ready=True)
    game.box.sh("systemctl kill -s KILL zlh-game")
    found = game.until("crashed")
    assert found.last_crash is not None
    assert (found.last_crash["class"], found.last_crash["signal"], found.last_crash["count"]) == ("unexpected_exit", 9, 1)
    assert "Done" in str(found.last_crash["log_tail"])
    game.kill()
    game.revive()
    assert game.until("running", ready=True).restarts == 1
    assert game.starts == 2


def test_what_dies_again_and_again_ends_in_error(game: House) -> None:
    game.mode("dies")
    game.order("start")
    found = game.until("error")
    assert (found.restarts, game.starts) == (3, 4)
    assert found.last_crash is not None
    assert (found.last_crash["class"], found.last_crash["exit_code"]) == ("nonzero_exit", 3)
    game.revive()
    assert game.until("error").restarts == 3


def test_a_restart_by_hand_is_no_crash(game: House) -> None:
    game.order("start")
    game.until("running", ready=True)
    game.box.sh("systemctl restart zlh-game")
    game.box.until("test $(wc -c < /srv/game/starts) = 2")
    found = game.until("running", ready=True)
    assert (game.starts, found.last_crash, found.restarts) == (2, None, 0)


def test_memory_that_ran_out_is_told(game: House) -> None:
    game.mode("hungry")
    game.order("start")
    found = game.until("crashed")
    game.mode("")
    assert found.last_crash is not None
    assert (found.last_crash["class"], found.last_crash["signal"]) == ("oom", 9), "the kernel killed it in a container of 512 MiB"
    game.until("running", ready=True)


def test_a_full_disk_refuses_orders_and_does_nothing(game: House) -> None:
    game.box.sh("mount -t tmpfs -o size=64k,mode=700 none /var/lib/zlh-agent; systemctl restart zlh-agent")
    try:
        game.until("stopped")
        game.box.sh("head -c 1M /dev/zero > /var/lib/zlh-agent/ballast || true")
        for action in ("start", "stop", "restart"):
            with pytest.raises(Busy, match="the disk is full"):
                game.order(action, 7)
        assert (game.status().state, game.status().operation, game.starts) == (WorkloadState.STOPPED, None, 0)
        left = game.box.sh("cd /var/lib/zlh-agent; rm ballast; ls -A")
        assert not [name for name in left.split() if name.startswith(".")], f"temporary files are left: {left}"
        game.order("start", 7)
        game.until("running", ready=True)
        game.order("stop", 7)
        game.until("stopped")
    finally:
        game.box.sh("systemctl stop zlh-agent; umount /var/lib/zlh-agent; systemctl start zlh-agent")


def test_over_a_boot_what_ran_runs_and_what_was_stopped_stays_so(game: House) -> None:
    game.order("start")
    game.until("running", ready=True)
    game.box.shutdown()
    game.box.boot()
    found = game.until("running", ready=True)
    assert (found.last_crash, found.restarts, game.starts) == (None, 0, 2)
    game.box.sh("test -e /srv/game/saved")
    game.order("stop")
    game.until("stopped")
    game.box.shutdown()
    game.box.boot()
    game.until("stopped")
    assert game.starts == 2


def test_jobs_are_remembered(game: House) -> None:
    game.order("start")
    game.until("running", ready=True)
    kept = json.loads(game.box.sh("cat /var/lib/zlh-agent/jobs.json"))
    assert (kept[-1]["kind"], kept[-1]["state"], kept[-1]["phase"]) == ("start", "succeeded", "ready")
