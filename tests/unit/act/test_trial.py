"""What a deleted server left behind, looked for in a database and a world in memory; the whole trial runs in tests/integration."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import insert, update

from flows.act import trial
from flows.domain.server import Server, ServerState
from flows.state import servers
from flows.state import tables as t
from flows.state.ids import new_id
from tests.unit.act import fakes
from tests.unit.act.conftest import House


async def _deleted(house: House) -> Server:
    server = await house.server()
    house.world.containers.clear()
    async with house.db.write() as tx:
        await servers.set_state(tx, server.id, ServerState.DELETING, "test")
        await servers.mark_deleted(tx, server.id, "test")
        await tx.execute(update(t.vmids).values(state="quarantined"))
    return server


async def _open(house: House, server: Server) -> None:
    row = {"check": "agent_offline", "subject": server.id, "server_id": server.id, "summary": "", "remedy": "", "reason": "unconfirmed"}
    async with house.db.write() as tx:
        times = {"opened_at": tx.now, "last_seen_at": tx.now}
        key = f"agent_offline/{server.id}"
        await tx.execute(insert(t.episodes).values(id=new_id(), open_key=key, severity=1, evidence={}, **row, **times))


async def _sweeps(house: House, *, closes: bool) -> None:
    """A sweep after the deletion."""
    async with house.db.write() as tx:
        if closes:
            await tx.execute(update(t.episodes).values(open_key=None, closed_at=tx.now))
        soon = tx.now + 60_000
        row = {"epoch": 1, "holder": "another", "started_at": soon, "finished_at": soon, "outcome": "clean", "summary": {}}
        await tx.execute(insert(t.sweeps).values(**row))


async def test_an_episode_is_the_next_sweeps_to_close(house: House) -> None:
    """No sweep had the time to see that the server is gone."""
    server = await _deleted(house)
    await _open(house, server)
    looking = asyncio.create_task(trial._traces(house.deps(), server))
    await asyncio.sleep(0)
    await _sweeps(house, closes=True)
    assert await looking == []


async def test_one_that_no_sweep_closes_is_a_trace(house: House) -> None:
    server = await _deleted(house)
    await _open(house, server)
    await _sweeps(house, closes=False)
    assert [object_ for object_, _, _ in await trial._traces(house.deps(), server)] == [f"episodes:{server.id}"]


async def test_other_templates_clones_do_not_hide_the_absence(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await _deleted(house)
    asked: list[int | None] = []

    async def proven_absent(self: fakes.Proxmox, vmid: int, *, template_vmid: int | None = None) -> bool:
        asked.append(template_vmid)
        return True

    monkeypatch.setattr(fakes.Proxmox, "proven_absent", proven_absent)
    assert await trial._traces(house.deps(), server) == []
    assert asked == [server.template_vmid]
