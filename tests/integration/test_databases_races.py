"""Real processes racing on each of the databases: the first is killed in a transaction, the second behind its commit, before anybody is told."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select

from flows.decide.placement import place
from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.domain.node import Node, NodeUsage
from flows.domain.placement import Headroom, Placement, PlacementRequest
from flows.state import audit, customers, intake, leases, nodes, operations, outbox
from flows.state import tables as t
from flows.state.customers import PlanLimits
from flows.state.database import Database
from tests.support import racer
from tests.support.databases import ALL, kind, mariadb, postgresql, server, url
from tests.support.databases import _migrated as _migrated

__all__ = ["kind", "mariadb", "postgresql", "server", "url"]

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.parametrize("kind", ALL, indirect=True),
    pytest.mark.parametrize(
        ("processes", "rounds"), [(4, 8), pytest.param(3, 80, marks=pytest.mark.soak), pytest.param(8, 40, marks=pytest.mark.soak)]
    ),
]
#: Seconds that a race may take.
LIMIT_S = 120
DEATHS = ("inside", "after")


@pytest.fixture
async def db(url: str) -> Any:
    database = Database(url, busy_timeout_s=20)
    yield database
    await database.close()


async def race(
    url: str, scenario: str, processes: int, rounds: int, subjects: Sequence[str] = (), feed: Callable[[], Awaitable[None]] | None = None
) -> list[dict[str, Any]]:
    """What all of them said; the first two are those that die. All begin at once, and there is work until those two are dead: ``feed`` brings it."""
    argv = [sys.executable, "-m", "tests.support.racer", scenario]
    more = ["--rounds", str(rounds), "--subjects", ",".join(subjects)]
    environment = os.environ | {"ZLH_DATABASE__URL": url}
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, "env": environment}
    started = [
        await asyncio.create_subprocess_exec(*argv, f"p{n}", *more, *(["--die", DEATHS[n]] if n < len(DEATHS) else []), **pipes)  # type: ignore[arg-type]
        for n in range(processes)
    ]
    try:
        async with asyncio.timeout(LIMIT_S):
            for process in started:
                assert process.stdout is not None
                line = await process.stdout.readline()
                assert line == b"ready\n", await _read(process.stderr)
            for process in started:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
            reading = [asyncio.gather(_read(process.stdout), _read(process.stderr), process.wait()) for process in started]
            while not all(ended.done() for ended in reading[: len(DEATHS)]):
                await asyncio.sleep(0.05)
                if feed:
                    await feed()
            for process in started:
                assert process.stdin is not None
                process.stdin.close()
            said = await asyncio.gather(*reading)
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    for n, (_, errors, code) in enumerate(said):
        mortal = {-9} | ({0} if scenario == "orders" else set())  # by chance all of its orders are refused
        assert code in (mortal if n < len(DEATHS) else {0}), f"p{n}: {code}: {errors[-3_000:]}"
    return [json.loads(line) for out, _, _ in said for line in out.splitlines()]


async def _read(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    return (await stream.read()).decode()


async def test_no_vmid_and_no_address_twice(url: str, db: Database, processes: int, rounds: int) -> None:
    said = await race(url, "identities", processes, rounds)
    async with db.read() as tx:
        numbers = [r.vmid for r in (await tx.execute(select(t.vmids.c.vmid).order_by(t.vmids.c.vmid))).all()]
        given = [r.number for r in (await tx.execute(select(t.addresses.c.number))).all()]
    assert len(said) == (processes - 2) * rounds + 2 * (rounds // 4)
    assert len({s["vmid"] for s in said}) == len({s["address"] for s in said}) == len(said)
    whole = len(said) + 1  # what the second was not told of
    assert len(numbers) == len(set(given)) == whole
    assert {s["vmid"] for s in said} <= set(numbers)


async def test_orders_neither_oversubscribe_nor_come_twice(url: str, db: Database, processes: int, rounds: int) -> None:
    """The real intake: more orders than quota and room allow, names that several want, two nodes."""
    total = processes * rounds
    room, quota = total // 4 * 2, total // 3
    async with db.write() as tx:
        await customers.put_plan(tx, PlanLimits("tight", quota, 10**6, 10**6, 1))
        await customers.put_plan(tx, PlanLimits("wide", 10**4, 10**6, 10**6, 1))
        owners = [(await customers.add(tx, "Ada", "tight")).id, (await customers.add(tx, "Bob", "wide")).id]
        for name in ("pve1", "pve2"):
            await nodes.put(tx, Node(name, room // 2 * racer.MEMORY_MB, 10**5, 16, "local-lvm", "vmbr0", {"fabric": 9000}))
    said = await race(url, "orders", processes, rounds, owners)
    async with db.read() as tx:
        rows = (await tx.execute(select(t.servers))).all()
        queued = await operations.list_(tx)
        reserved = Counter((await tx.execute(select(t.vmids.c.server_id))).scalars())
        placed = Counter((await tx.execute(select(t.addresses.c.server_id))).scalars())
        lines = Counter(line.server_id for line in await audit.list_(tx, limit=10_000) if line.action == "server.create")
        tries = Counter((await tx.execute(select(t.attempts.c.operation_id))).scalars())
    ids = {row.id for row in rows}
    # Each is whole, each once: no reservation, operation, attempt or line without a server, and none missing.
    assert set(reserved) == set(placed) == set(lines) == {o.server_id for o in queued} == ids
    assert all(set(count.values()) == {1} for count in (reserved, placed, lines, tries))
    assert len({row.vmid for row in rows}) == len({row.address for row in rows}) == len({row.name for row in rows}) == len(rows)
    by_node, by_owner = Counter(row.node for row in rows), Counter(row.customer_id for row in rows)
    assert max(by_node.values()) <= room // 2
    assert by_owner[owners[0]] <= quota
    told = {s["server"] for s in said if "server" in s}
    assert told <= ids
    assert len(ids - told) <= 1
    # Whoever was refused was refused for a reason that the rows bear out; never by a collision, which is tried again inside.
    refused = {s["refused"] for s in said if "refused" in s}
    assert refused <= {"quota", "no_capacity", "name_taken"}, said
    assert "quota" not in refused or by_owner[owners[0]] == quota
    assert "no_capacity" not in refused or len(rows) == room
    # The dead one's customer asks again with the same nonce: the same order, and only one.
    for untold in (row for row in rows if row.id not in told):
        (nonce,) = await _nonces(db, untold.id)
        order = racer.order_of(untold.customer_id, untold.name, nonce)
        again = await db.apply(lambda tx, order=order: intake.create(tx, order, place=_place, ranges=racer.RANGES))  # type: ignore[misc]  # a lambda with a default
        assert (again.server.id, again.deduplicated) == (untold.id, True)
        assert nonce.startswith("p1-")


def _place(request: PlacementRequest, known: Sequence[NodeUsage]) -> Placement:
    return place(request, known, Headroom(0, 0.0, 0.0))


async def _nonces(db: Database, server_id: str) -> list[str]:
    async with db.read() as tx:
        return list((await tx.execute(select(t.operations.c.nonce).where(t.operations.c.server_id == server_id))).scalars())


async def test_one_holder_of_a_lease_at_a_time(url: str, db: Database, processes: int, rounds: int) -> None:
    said = await race(url, "leased", processes, rounds, ["server-1"])
    assert not [s for s in said if "fenced" in s]
    _alone(await _log(db), processes, rounds)
    async with db.read() as tx:
        last = await leases.get(tx, "server-1")
    assert last is not None
    assert last.holder in (None, "p1")


async def test_one_sweep_at_a_time(url: str, db: Database, processes: int, rounds: int) -> None:
    said = await race(url, "sweeps", processes, rounds)
    assert not [s for s in said if "fenced" in s]
    _alone(await _log(db), processes, rounds)


async def _log(db: Database) -> list[tuple[str, str, int]]:
    """What was written under protection, in the order in which it was written."""
    async with db.read() as tx:
        return [(line.actor, line.action, int(line.subject)) for line in reversed(await audit.list_(tx, limit=100_000))]


def _alone(log: list[tuple[str, str, int]], processes: int, rounds: int) -> None:
    """Tokens only grow, and nobody's begin stands between another's begin and end."""
    tokens = [token for _, _, token in log]
    assert tokens == sorted(tokens)
    holding: tuple[str, int] | None = None
    for actor, action, token in log:
        if action == "begin":
            assert holding is None or holding[0] in ("p0", "p1"), f"{actor} began inside {holding}"  # the dead never end
            holding = (actor, token)
        else:
            assert holding == (actor, token)
            holding = None
    ended = Counter(actor for actor, action, _ in log if action == "end")
    assert ended == {f"p{n}": rounds if n >= len(DEATHS) else rounds // 4 for n in range(processes)}


async def test_a_message_is_one_dispatchers(url: str, db: Database, processes: int, rounds: int) -> None:
    keys = [f"event-{n}" for n in range(processes * rounds)]

    async def put(some: Sequence[str]) -> None:
        route = Route(Channel.REPAIRS, ping=False, severity=Severity.INFO)
        async with db.write() as tx:
            await outbox.put_all(tx, [(Event(EventKind.REPAIR_SUCCEEDED, key, key), route) for key in some])

    async def feed() -> None:
        more = [f"event-{len(keys) + n}" for n in range(3)]
        keys.extend(more)
        await put(more)

    await put(keys)
    said = await race(url, "messages", processes, 2, feed=feed)
    sent = Counter(s["sent"] for s in said)
    assert set(sent.values()) == {1}
    async with db.read() as tx:
        left = set((await tx.execute(select(t.outbox.c.key).where(t.outbox.c.state == outbox.WAITING))).scalars())
    # What the dead ones had claimed and never sent others sent, once the claim was over.
    assert set(keys) == set(sent)
    assert not left
    assert 1 <= sum(s["doubted"] for s in said) <= 3


async def test_one_run_and_one_submitter_per_attempt(url: str, db: Database, processes: int, rounds: int) -> None:
    async with db.write() as tx:
        await customers.put_plan(tx, PlanLimits("wide", 10**4, 10**6, 10**6, 1))
        owner = (await customers.add(tx, "Ada", "wide")).id
        await nodes.put(tx, Node("pve1", 10**6, 10**5, 16, "local-lvm", "vmbr0", {"fabric": 9000}))
        made = [await intake.create(tx, racer.order_of(owner, f"s{n}", f"n{n}"), place=place, ranges=racer.RANGES) for n in range(4 * rounds)]
    ids = [accepted.operation.id for accepted in made]
    said = await race(url, "runs", processes, rounds, ids)
    ran, submitted = Counter(s["run"] for s in said if "run" in s), Counter(s["submitted"] for s in said if "submitted" in s)
    assert set(ran.values()) == {1}
    assert set(submitted.values()) <= {1}
    async with db.read() as tx:
        found = await operations.list_(tx)
        held = await leases.list_(tx)
    assert {o.claimed for o in found} == {1}
    assert len(set(ids) - set(ran)) == 1  # the second claimed it, and told nobody
    assert sorted(lease.operation_id or "" for lease in held) == sorted(ids)
