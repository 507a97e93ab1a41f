"""Servers: legal moves alone, names unique while alive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flows.domain.server import SERVER_TRANSITIONS, ContainerType, Desired, Edge, Runtime, ServerState
from flows.errors import Conflict, NotFound
from flows.state import audit, servers
from flows.state.database import Database

S = ServerState
WAYS: dict[ServerState, list[ServerState]] = {
    S.CREATING: [],
    S.ACTIVE: [S.ACTIVE],
    S.SUSPENDED: [S.SUSPENDED],
    S.FAILED: [S.FAILED],
    S.DELETING: [S.ACTIVE, S.DELETING],
    S.DELETED: [S.DELETED],
}


async def test_comes_back_as_it_went_in(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        made = await make.server(
            tx,
            ctype=ContainerType.DEV,
            flavor="node",
            runtimes=(Runtime("python", "3.12"), Runtime("node", "22")),
            code_server=True,
            game_port=25_570,
        )
    async with timed.read() as tx:
        assert await servers.get(tx, made.id) == made
        assert await servers.by_name(tx, made.name) == made
        assert await servers.get(tx, "nope") is None


async def test_what_is_remembered_is_what_is_there_and_bounded(timed: Database, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with timed.write() as tx:
        made = [await make.server(tx) for _ in range(5)]
        assert await servers.list_(tx) == made
        changed = Edge.WITHDRAWN if made[4].edge is Edge.OPEN else Edge.OPEN
        await servers.set_edge(tx, made[4].id, changed)
        assert await servers.list_(tx) == [*made[:4], replace(made[4], edge=changed)]
        monkeypatch.setattr(servers, "_KEPT", 2)
        servers._BEFORE.clear()
        assert len(await servers.list_(tx)) == 5
    assert len(servers._BEFORE) <= 2


@pytest.mark.parametrize("before", list(S))
@pytest.mark.parametrize("to", list(S))
async def test_only_moves_of_the_table(timed: Database, make: Any, before: ServerState, to: ServerState) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        for step in WAYS[before]:
            await servers.set_state(tx, server.id, step, "setup")
    legal = to in SERVER_TRANSITIONS[before]
    try:
        async with timed.write() as tx:
            await servers.set_state(tx, server.id, to, "tester")
    except Conflict as refused:
        assert not legal
        assert refused.kind == "illegal_transition"
    else:
        assert legal
    async with timed.read() as tx:
        after = await servers.get(tx, server.id)
        named = await servers.by_name(tx, server.name)
        lines = [(x.action, x.detail["to"], x.server_id) for x in await audit.list_(tx, actor="tester")]
    assert after is not None
    assert after.state is (to if legal else before)
    released = after.state in (S.DELETED, S.FAILED) or (before is S.FAILED and after.state is not S.CREATING)
    assert (named is None) == released, "a name is held while its server lives; a failed one gives it up for good unless it is tried again"
    assert lines == [("server.state" if legal else "server.state.refused", to.value, server.id)]


async def test_a_name_is_given_once_and_again_after_deletion(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        first = await make.server(tx, name="alpha")
        with pytest.raises(Conflict) as refused:
            await make.server(tx, name="alpha")
        assert (refused.value.kind, refused.value.facts) == ("name_taken", {"name": "alpha"})
        await servers.mark_deleted(tx, first.id, "t")
        second = await make.server(tx, name="alpha")
        assert await servers.by_name(tx, "alpha") == second


async def test_a_failed_server_comes_back_only_if_its_name_is_still_free(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        first = await make.server(tx, name="alpha")
        await servers.mark_failed(tx, first.id, "t")
        await servers.set_state(tx, first.id, S.CREATING, "t")
        assert (await servers.by_name(tx, "alpha")).id == first.id
        await servers.mark_failed(tx, first.id, "t")
        await make.server(tx, name="alpha")
    with pytest.raises(Conflict) as refused:
        async with timed.write() as tx:
            await servers.set_state(tx, first.id, S.CREATING, "t")
    assert refused.value.kind == "name_taken"


async def test_activation_is_dated_once(timed: Database, clock: Any, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        await servers.set_state(tx, server.id, S.ACTIVE, "t")
    first = clock.now
    clock.advance(1_000)
    async with timed.write() as tx:
        await servers.set_state(tx, server.id, S.SUSPENDED, "t")
        await servers.set_state(tx, server.id, S.ACTIVE, "t")
        present = await servers.get(tx, server.id)
    assert present is not None
    assert present.activated_at == first


async def test_desired_changes_are_audited_once(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        assert await servers.set_desired(tx, server.id, Desired.STOPPED, "customer:c")
        assert not await servers.set_desired(tx, server.id, Desired.STOPPED, "admin:a")
        present = await servers.get(tx, server.id)
        assert present is not None
        assert (present.desired, present.desired_by) == (Desired.STOPPED, "customer:c")
        assert [x.actor for x in await audit.list_(tx, action="server.desired")] == ["customer:c"]


async def test_edge_and_vmid(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        await servers.set_edge(tx, server.id, Edge.WITHDRAWN)
        await servers.set_vmid(tx, server.id, 10_999)
        assert await servers.get(tx, server.id) == replace(server, edge=Edge.WITHDRAWN, vmid=10_999)


async def test_an_agents_token_is_raised_by_one_of_two(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        assert await servers.raise_token_version(tx, server.id, 1) == 2
        with pytest.raises(Conflict):
            await servers.raise_token_version(tx, server.id, 1)


async def test_unknown_ones_are_not_found(timed: Database) -> None:
    for act in (
        lambda tx: servers.set_state(tx, "nope", S.ACTIVE, "t"),
        lambda tx: servers.set_desired(tx, "nope", Desired.RUNNING, "t"),
        lambda tx: servers.set_edge(tx, "nope", Edge.OPEN),
        lambda tx: servers.set_vmid(tx, "nope", 1),
    ):
        with pytest.raises(NotFound):
            async with timed.write() as tx:
                await act(tx)


async def test_lists_and_pages(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        owner = await make.customer(tx)
        a, b, c = [await make.server(tx, customer_id=owner.id) for _ in range(3)]
        d = await make.server(tx, node="pve2")
        await servers.mark_deleted(tx, b.id, "t")
        await servers.set_state(tx, c.id, S.ACTIVE, "t")

    async def ids(**how: Any) -> list[str]:
        async with timed.read() as tx:
            return [s.id for s in await servers.list_(tx, **how)]

    assert await ids() == [a.id, c.id, d.id]
    assert await ids(customer_id=owner.id) == [a.id, c.id]
    assert await ids(state=S.DELETED) == [b.id]
    assert await ids(state=[S.DELETED, S.ACTIVE]) == [b.id, c.id]
    assert await ids(host="pve2") == [d.id]
    assert await ids(limit=2) == [a.id, c.id]
    assert await ids(limit=2, after=c.id) == [d.id]


async def test_usage_counts_everything_but_deleted_and_failed(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        owner = await make.customer(tx)
        assert await servers.usage(tx, owner.id) == servers.Usage(0, 0, 0)
        for state in S:
            server = await make.server(tx, customer_id=owner.id, memory_mb=1_000, disk_gb=10)
            for step in WAYS[state]:
                await servers.set_state(tx, server.id, step, "t")
        assert await servers.usage(tx, owner.id) == servers.Usage(4, 4_000, 40)
