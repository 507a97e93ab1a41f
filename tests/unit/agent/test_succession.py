"""The agent killed at any point, and the next one over the same game and state directory."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from zlh_agent import starting, supervisor
from zlh_agent.config import NotPrepared
from zlh_agent.jobs import Jobs, NotAttached
from zlh_agent.unit import UnitError


@pytest.fixture
def over(waits: Any) -> Any:
    return waits[1]


@pytest.fixture
def until(waits: Any) -> Any:
    return waits[0]


def record(house: Any) -> Any:
    return json.loads((house.state / "game.json").read_text())


async def test_a_running_game_is_taken_up_as_it_is(house: Any, over: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    pid, up = house.unit.process.pid, agent.uptime_s
    await house.kill(agent)
    later = await house.agent()
    assert (later.state, later.live, house.unit.process.pid, house.unit.starts) == ("running", None, pid, 1)
    assert later.uptime_s >= up
    await over(later.stop()[0])
    assert (house.unit.directory / "saved").exists(), "the console was kept"


async def test_a_start_is_finished_by_the_next(house: Any, over: Any, until: Any) -> None:
    house.unit.mode("mute")
    agent = await house.agent()
    job, _ = agent.start()
    await until(lambda: house.unit.starts == 1)
    await house.kill(agent)
    house.unit.mode("")
    house.unit.kill()  # it died while nobody looked
    later = await house.agent()
    assert later.live is not None and later.live.id == job.id
    assert (await over(later.live)).state == "succeeded"
    assert (later.state, house.unit.starts) == ("running", 2)


async def test_a_start_under_way_is_waited_for_and_not_made_twice(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    job, _ = agent.start()
    await until(lambda: house.unit.runs == 1)
    await house.kill(agent)
    assert Jobs(house.state / "jobs.json").find(job.id).state == "interrupted"
    later = await house.agent()
    await over(later.live)
    assert (later.state, house.unit.starts) == ("running", 1)


async def test_a_start_that_was_only_written_down_is_made(house: Any, over: Any) -> None:
    agent = await house.agent()
    agent.start()
    await house.kill(agent)
    assert house.unit.runs == 0
    later = await house.agent()
    await over(later.live)
    assert (later.state, house.unit.starts) == ("running", 1)


async def test_a_stop_is_finished_by_the_next_and_asks_no_second_time(house: Any, over: Any, until: Any) -> None:
    house.unit.mode("deaf")
    house.configure(stop_timeout_s=0.3)
    agent = await house.agent()
    await over(agent.start()[0])
    job, _ = agent.stop()
    await until(lambda: house.unit.written == ["stop"])
    await house.kill(agent)
    later = await house.agent()
    assert later.live.id == job.id
    assert (await over(later.live)).state == "succeeded"
    assert (later.state, house.unit.written) == ("stopped", ["stop"])
    assert house.unit.process.poll() is not None


async def test_a_restart_is_finished_by_the_next(house: Any, over: Any, until: Any) -> None:
    house.unit.mode("deaf")
    house.configure(stop_timeout_s=0.3)
    agent = await house.agent()
    await over(agent.start()[0])
    agent.restart()
    await until(lambda: house.unit.written == ["stop"])
    await house.kill(agent)
    later = await house.agent()
    assert (await over(later.live)).state == "succeeded"
    assert (later.state, house.unit.starts) == ("running", 2)


async def test_a_pause_after_a_crash_goes_on(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    house.unit.kill()
    await until(lambda: agent.state == "crashed")
    await house.kill(agent)
    assert house.unit.starts == 1
    later = await house.agent()
    await until(lambda: later.state == "running")
    assert (later.restarts, house.unit.starts, later.last_crash["count"]) == (1, 2, 1)


async def test_a_crash_that_nobody_saw_is_seen_later(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    await house.kill(agent)
    house.unit.kill()
    later = await house.agent()
    assert later.last_crash["signal"] == 9
    await until(lambda: later.state == "running")
    assert later.restarts == 1


async def test_while_a_crash_is_looked_into_no_order_gets_in_between(house: Any, over: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    await house.kill(agent)
    house.unit.kill()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow(run: str, lines: int) -> tuple[str, ...]:
        asked.set()
        await answered.wait()
        return ()

    monkeypatch.setattr(house.unit, "tail", slow)
    later = house.successor()
    attaching = asyncio.create_task(later.attach())
    await asyncio.wait_for(asked.wait(), 5)
    with pytest.raises(NotAttached):
        later.start()
    answered.set()
    await asyncio.wait_for(attaching, 5)
    await until(lambda: later.state == "running")
    assert (later.restarts, later.last_crash["signal"], house.unit.starts) == (1, 9, 2)


async def test_an_error_stays_one(house: Any, over: Any, until: Any) -> None:
    house.unit.mode("dies")
    agent = await house.agent()
    agent.start()
    await until(lambda: agent.state == "error")
    await house.kill(agent)
    later = await house.agent()
    assert (later.state, later.live, later.last_crash["class"]) == ("error", None, "nonzero_exit")


async def test_what_ran_before_the_boot_runs_after_it(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    await house.kill(agent)
    await house.reboot()
    later = await house.agent()
    assert later.live is not None and later.live.by == "autostart"
    await until(lambda: later.state == "running")
    assert later.last_crash is None


async def test_a_unit_that_says_nothing_for_a_while_is_no_error_for_good(house: Any, over: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    await house.kill(agent)
    await house.reboot()
    start, left = house.unit.start, 2

    async def silent() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise UnitError("systemctl start: no answer within 80 s")
        await start()

    monkeypatch.setattr(house.unit, "start", silent)
    later = await house.agent()
    job = later.live
    assert (await over(job)).outcome == "unknown: systemctl start: no answer within 80 s"
    assert (later.state, later.last_crash["class"], record(house)["error"]) == ("crashed", "unknown", False)
    await until(lambda: later.state == "running")
    assert later.restarts == 2
    left = 100
    house.unit.kill()
    await until(lambda: later.state == "error")
    assert later.last_crash["count"] == 4, "and not for ever"


@pytest.mark.parametrize("lapse", [True, False])
async def test_a_run_that_is_old_gets_time_to_answer(house: Any, over: Any, until: Any, monkeypatch: pytest.MonkeyPatch, lapse: bool) -> None:
    monkeypatch.setattr(starting, "GRACE_S", 0.4 if lapse else 30.0)
    house.configure(ready_timeout_s=0.1)
    house.unit.mode("mute")
    house.unit.spawn()
    house.unit.since -= 1000  # the game was there long before the agent
    began = time.monotonic()
    agent = await house.agent()
    job = agent.live
    assert job.by == "adopted"
    if lapse:
        assert (await over(job)).outcome.startswith("ready_timeout") and time.monotonic() - began >= 0.4
    else:
        await asyncio.wait({asyncio.create_task(over(job))}, timeout=0.5)
        assert (job.state, agent.state) == ("running", "starting")


@pytest.mark.parametrize("boots", [False, True])
async def test_what_a_person_stopped_stays_so(house: Any, over: Any, boots: bool) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    await over(agent.stop()[0])
    await house.kill(agent)
    if boots:
        await house.reboot()
    later = await house.agent()
    assert (later.state, later.live, house.unit.starts) == ("stopped", None, 1)


async def test_a_record_that_says_nothing_is_put_aside_and_the_game_is_seen(house: Any, over: Any, until: Any) -> None:
    agent = await house.agent()
    await over(agent.start()[0])
    await house.kill(agent)
    (house.state / "game.json").write_text("{")
    later = await house.agent()
    await until(lambda: later.state == "running")
    assert house.unit.starts == 1 and (house.state / "game.bad").exists()


async def test_a_file_that_says_nothing_is_read_again(house: Any, over: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.05)
    house.unit.mode("mute")
    agent = await house.agent()
    job, _ = agent.start()
    await until(lambda: house.unit.starts == 1)
    await house.kill(agent)
    house.malformed = True
    later = house.successor()
    attaching = asyncio.create_task(later.attach())
    await asyncio.wait({attaching}, timeout=0.2)
    assert not attaching.done() and record(house)["operation"]["job"] == job.id
    for order in (later.start, later.stop):
        with pytest.raises(NotPrepared):
            order()
    house.malformed = False
    await asyncio.wait_for(attaching, 5)
    assert later.live.id == job.id


async def test_what_is_decided_is_on_disk_before_it_is_done(house: Any, over: Any) -> None:
    agent = await house.agent()
    agent.start()
    assert (record(house)["wanted"], record(house)["operation"]["kind"], house.unit.runs) == ("running", "start", 0)
    await over(agent.live)
    agent.stop()
    assert (record(house)["wanted"], record(house)["operation"]["kind"]) == ("stopped", "stop")
    assert house.unit.written == []
