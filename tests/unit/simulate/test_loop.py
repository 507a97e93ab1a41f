"""Virtual time, and processes that die or stand still at any ``await``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from flows.simulate.loop import BARE, Deadlock, Process, VirtualLoop


def process(loop: VirtualLoop, name: str = "p") -> Process:
    return Process(name, "h", "test", loop.time())


def test_time_jumps(loop: VirtualLoop) -> None:
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.time() == 86_400


def test_ties_run_in_the_order_of_their_making(loop: VirtualLoop) -> None:
    seen = list[int]()

    async def main() -> None:
        for n in range(20):
            loop.call_at(5.0, seen.append, n)
        await asyncio.sleep(6)

    loop.run_until_complete(main())
    assert seen == list(range(20))


def test_nothing_left_to_do_is_an_error(loop: VirtualLoop) -> None:
    with pytest.raises(Deadlock):
        loop.run_until_complete(loop.create_future())


def _worker(loop: VirtualLoop, done: list[str]) -> Awaitable[None]:
    async def work() -> None:
        try:
            done.append("began")
            await BARE
            done.append("second step")
            await asyncio.sleep(10)
            done.append("woke")
        finally:
            done.append("finally")

    return work()


def test_the_dead_run_no_finally(loop: VirtualLoop) -> None:
    done = list[str]()
    p = process(loop)

    async def main() -> None:
        loop.spawn(p, _worker(loop, done))  # type: ignore[arg-type]  # a coroutine
        await asyncio.sleep(5)
        loop.kill(p)
        await asyncio.sleep(20)

    loop.run_until_complete(main())
    assert done == ["began", "second step"]


def test_death_at_the_k_th_step(loop: VirtualLoop) -> None:
    done = list[str]()
    p = process(loop)
    p.arm(loop.kill, 2)

    async def main() -> None:
        loop.spawn(p, _worker(loop, done))  # type: ignore[arg-type]  # a coroutine
        await asyncio.sleep(20)

    loop.run_until_complete(main())
    assert done == ["began"]
    assert p.dead


def test_whoever_stands_still_goes_on_later(loop: VirtualLoop) -> None:
    done = list[str]()
    p = process(loop)

    async def main() -> None:
        loop.spawn(p, _worker(loop, done))  # type: ignore[arg-type]  # a coroutine
        await asyncio.sleep(5)
        loop.stand(p, 100)
        await asyncio.sleep(50)
        assert done == ["began", "second step"]
        await asyncio.sleep(60)

    loop.run_until_complete(main())
    assert done[-2:] == ["woke", "finally"]
    assert p.paused_s == 100


def test_strikes_at_a_boundary(loop: VirtualLoop) -> None:
    p, struck = process(loop), list[str]()
    p.arm(lambda who: struck.append(who.name), "repair:")
    assert not p.at("tx:commit")
    assert p.at("repair:publish_dns:effect")
    assert not p.at("repair:again")
    assert struck == ["p"]


def test_an_error_that_nobody_awaits_ends_the_run(loop: VirtualLoop) -> None:

    def wrong() -> None:
        raise ValueError("driver")

    async def main() -> None:
        loop.call_soon(wrong)
        await asyncio.sleep(1)

    with pytest.raises(ValueError, match="driver"):
        loop.run_until_complete(main())


def test_sets_of_tasks_have_an_order(loop: VirtualLoop) -> None:

    async def main() -> list[str]:
        tasks = {asyncio.create_task(asyncio.sleep(1, str(n)), name=str(n)) for n in range(100)}
        done, _ = await asyncio.wait(tasks)
        return [task.get_name() for task in done]

    first, second = loop.run_until_complete(main()), loop.run_until_complete(main())
    assert first == second


def test_a_connection_is_only_looked_for(loop: VirtualLoop) -> None:

    async def nobody(host: str, port: int) -> None:
        raise OSError("no route")

    loop.connect = nobody
    with pytest.raises(OSError, match="no route"):
        loop.run_until_complete(asyncio.open_connection("10.0.0.1", 22))
