"""The supervisor over a real child process: every start ends at ready or at a class, every stop is bounded."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from dataclasses import replace
from typing import Any

import pytest

from zlh_agent import durable
from zlh_agent.config import NotPrepared
from zlh_agent.jobs import InProgress
from zlh_agent.unit import UnitError


@pytest.fixture
def over(waits: Any) -> Any:
    return waits[1]


@pytest.fixture
def until(waits: Any) -> Any:
    return waits[0]


async def test_a_start_ends_at_ready(house: Any, over: Any) -> None:
    agent = await house.agent()
    job, effect = agent.start()
    assert effect and (job.kind, agent.state, agent.live) == ("start", "stopped", job)
    assert (await over(job)).state == "succeeded" and job.phase == "ready"
    pong = await agent.look()
    assert (agent.state, pong.ok, pong.players, agent.live) == ("running", True, 3, None)
    assert agent.uptime_s > 0


async def test_the_same_order_twice_is_one_job(house: Any, over: Any) -> None:
    agent = await house.agent()
    job, _ = agent.start()
    assert agent.start() == (job, False)
    await over(job)
    again, effect = agent.start()
    assert not effect and again.id != job.id and again.state == "succeeded"
    assert house.unit.starts == 1


async def test_another_order_is_refused_and_names_what_is_under_way(house: Any, over: Any) -> None:
    agent = await house.agent()
    job, _ = agent.start()
    with pytest.raises(InProgress) as refused:
        agent.stop()
    assert refused.value.job is job
    assert (await over(job)).state == "succeeded"


async def test_a_stop_is_graceful(house: Any, over: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    job = await over(agent.stop()[0])
    assert (job.state, agent.state) == ("succeeded", "stopped")
    assert (house.unit.directory / "saved").exists()
    assert agent.last_crash is None
    assert not (await agent.look()).ok


@pytest.mark.parametrize(("mode", "number"), [("deaf", signal.SIGTERM), ("deaf stubborn", signal.SIGKILL)])
async def test_a_game_that_does_not_hear_is_ended_in_bounded_time(house: Any, over: Any, mode: str, number: signal.Signals) -> None:
    house.unit.mode(mode)
    house.configure(stop_timeout_s=0.2)
    agent = await house.agent()
    await over(agent.start()[0])
    job = await over(agent.stop()[0])
    assert (job.state, agent.state) == ("succeeded", "stopped")
    assert house.unit.process.returncode == -number


async def test_a_stop_stops_what_was_started_behind_its_back(house: Any, over: Any) -> None:
    agent = await house.agent()
    house.unit.spawn()
    await over(agent.stop()[0])
    assert house.unit.process.poll() is not None


async def test_what_was_started_by_hand_is_noticed(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    house.unit.spawn()
    await agent.look()
    await until(lambda: agent.state == "running")
    assert house.unit.starts == 1


async def test_an_order_for_what_was_started_by_hand_is_remembered(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    house.unit.spawn()
    await agent.look()
    job = agent.live
    assert job.by == "adopted" and agent.start() == (job, False)
    await over(job)
    await house.kill(agent)
    await house.reboot()
    later = await house.agent()
    assert later.live is not None and later.live.by == "autostart"


async def test_what_was_started_by_hand_and_is_gone_again_is_not_started_against_a_stop(house: Any, over: Any) -> None:
    agent = await house.agent()
    await over(agent.stop()[0])
    house.unit.spawn()
    await agent.look()
    job = agent.live
    house.unit.kill()  # before the adoption begins
    assert (await over(job)).state == "failed"
    assert (agent.state, house.unit.runs, agent.live) == ("stopped", 1, None)
    await house.kill(agent)
    assert (await house.agent()).state == "stopped"


async def test_a_restart_is_a_stop_and_a_start(house: Any, over: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    job = await over(agent.restart()[0])
    assert (job.state, agent.state, house.unit.starts) == ("succeeded", "running", 2)
    assert (house.unit.directory / "saved").exists()


async def test_after_a_crash_it_is_started_again(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    house.unit.kill()
    await until(lambda: agent.state == "crashed")
    assert agent.last_crash["class"] == "unexpected_exit"
    assert (agent.last_crash["signal"], agent.last_crash["exit_code"], agent.last_crash["count"]) == (9, None, 1)
    assert "Done" in agent.last_crash["log_tail"]
    await until(lambda: agent.state == "running")
    assert (agent.restarts, house.unit.starts) == (1, 2)


async def test_what_has_ended_is_not_called_running_while_the_reason_is_sought(
    house: Any, over: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow(run: str, lines: int) -> tuple[str, ...]:
        asked.set()
        await answered.wait()
        return ()

    monkeypatch.setattr(house.unit, "tail", slow)
    house.unit.kill()
    await asyncio.wait_for(asked.wait(), 5)
    assert agent.state != "running" and not (await agent.look()).ok
    answered.set()
    await until(lambda: agent.state == "running")
    assert (agent.restarts, house.unit.starts) == (1, 2)


async def test_after_the_last_pause_somebody_must_act(house: Any, over: Any, until: Any) -> None:
    house.unit.mode("dies")
    agent = await house.agent()
    job = await over(agent.start()[0])
    assert (job.state, job.outcome) == ("failed", "nonzero_exit: exit code 3")
    await until(lambda: agent.state == "error")
    assert (house.unit.starts, agent.restarts) == (4, 3)
    assert (agent.last_crash["count"], agent.last_crash["class"]) == (4, "nonzero_exit")
    house.unit.mode("")
    assert (await over(agent.start()[0])).state == "succeeded"
    house.unit.kill()
    await until(lambda: agent.state == "crashed")
    assert agent.last_crash["count"] == 1, "an order begins the count anew"


async def test_uptime_makes_earlier_crashes_forgotten(house: Any, over: Any, until: Any) -> None:
    house.settings = replace(house.settings, settle_s=0.0)
    agent = await house.agent()
    await over(agent.start()[0])
    for _ in range(5):
        before = house.unit.runs
        house.unit.kill()
        await until(lambda before=before: house.unit.runs > before and agent.state == "running")
        assert agent.last_crash["count"] == 1


async def test_memory_that_ran_out_is_told_from_its_words(house: Any, over: Any) -> None:
    house.unit.mode("oom")
    agent = await house.agent()
    assert (await over(agent.start()[0])).outcome.startswith("oom: ")


async def test_a_port_that_is_taken_is_said_and_not_tried_again(house: Any, over: Any, port: int) -> None:
    agent = await house.agent()
    with socket.create_server(("127.0.0.1", port)):
        job = await over(agent.start()[0])
    assert job.outcome.startswith("port_in_use: ")
    assert (agent.state, house.unit.starts) == ("error", 0)


async def test_what_never_serves_is_ended_and_counts_as_a_crash(house: Any, over: Any) -> None:
    house.settings = replace(house.settings, backoff_s=())
    house.unit.mode("mute")
    house.configure(ready_timeout_s=0.4)
    agent = await house.agent()
    job = await over(agent.start()[0])
    assert job.outcome.startswith("ready_timeout: not ready within 0.4 s")
    assert (agent.state, house.unit.process.poll() is not None) == ("error", True)


async def test_a_journal_that_says_nothing_does_not_keep_alive_what_never_serves(house: Any, over: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    house.settings = replace(house.settings, backoff_s=())
    house.unit.mode("mute")
    house.configure(ready_timeout_s=0.4)

    async def silent(run: str, lines: int) -> tuple[str, ...]:
        raise UnitError("journalctl: no answer within 20 s")

    monkeypatch.setattr(house.unit, "tail", silent)
    agent = await house.agent()
    assert (await over(agent.start()[0])).outcome.startswith("ready_timeout: ")
    assert house.unit.process.poll() is not None


async def test_a_unit_that_does_not_start_is_said(house: Any, over: Any) -> None:
    house.unit.refuses = "Unit zlh-game.service has a bad unit file setting."
    agent = await house.agent()
    assert (await over(agent.start()[0])).outcome == "cannot_start: Unit zlh-game.service has a bad unit file setting."
    assert agent.state == "error"


async def test_a_unit_that_is_not_there_is_said(house: Any, over: Any) -> None:
    house.unit.loaded = False
    agent = await house.agent()
    assert (await over(agent.start()[0])).outcome == "not_prepared: there is no unit zlh-game.service"


async def test_a_container_that_goes_down_is_no_crash(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    house.unit.going_down = True
    house.unit.kill()
    await until(lambda: agent.state == "stopped")
    assert agent.last_crash is None


async def test_without_a_game_only_a_stop_is_possible(house: Any, over: Any) -> None:
    house.game = None
    agent = await house.agent()
    for order in (agent.start, agent.restart):
        with pytest.raises(NotPrepared):
            order()
    assert agent.stop()[0].state == "succeeded"


@pytest.mark.parametrize("how", ["missing", "malformed"])
async def test_what_runs_is_stopped_even_if_its_file_says_nothing_any_more(house: Any, over: Any, how: str) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    house.malformed, house.game = how == "malformed", house.game if how == "malformed" else None
    assert (await over(agent.stop()[0])).state == "succeeded"
    assert (house.unit.process.poll(), agent.state) == (0, "stopped")


async def test_a_stop_of_what_is_not_known_is_no_success(house: Any, over: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    await house.kill(agent)
    house.game = None
    later = await house.agent()
    with pytest.raises(NotPrepared):
        later.stop()
    await house.kill(later)
    await house.reboot()
    assert (await house.agent()).stop()[0].state == "succeeded", "nothing outlives a boot"


async def test_an_order_that_cannot_be_remembered_is_not_carried_out(house: Any, over: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await house.agent()
    write = durable.write

    def full(path: Any, text: str) -> None:
        if path.name == "game.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(OSError, match="No space left"):
        agent.start()
    assert (agent.live, agent.state, house.unit.starts) == (None, "stopped", 0)
    monkeypatch.undo()
    await house.kill(agent)
    later = await house.agent()
    assert (later.state, later.live, house.unit.starts) == ("stopped", None, 0)
