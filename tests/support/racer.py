"""One of several processes that race on one database: ``python -m tests.support.racer SCENARIO NAME`` with the URL in ZLH_DATABASE__URL.

Says ``ready``, waits for a line, does its rounds, and says one JSON value per outcome. With ``--die inside`` it kills itself (SIGKILL) in the
open transaction of its first success after a quarter of its rounds, with ``--die after`` behind its commit, before anybody is told. The input
of the others ends when these are dead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flows.decide.placement import place
from flows.domain.intake import Creation, Ranges
from flows.domain.lease import LeaseKind
from flows.domain.placement import Headroom
from flows.domain.server import ContainerType
from flows.errors import AutomationError, Fenced
from flows.state import addresses, attempts, audit, control, epochs, intake, leases, outbox, vmids
from flows.state.database import Database, Tx

T = TypeVar("T")
RANGES = Ranges(10_000, 10_999, "10.20.0.0/20", "10.20.0.10", "10.20.0.1", 3_600_000)
#: What a server of an order takes; nodes have room for so many by memory alone.
MEMORY_MB, DISK_GB = 1_024, 5


@dataclass
class Racer:
    db: Database
    name: str
    rounds: int
    die: str
    subjects: list[str]

    def say(self, **what: Any) -> None:
        print(json.dumps({"who": self.name, **what}), flush=True)

    async def write(self, work: Callable[[Tx], Awaitable[T]], *, n: int) -> T:
        """The transaction of round ``n``; death in it or behind it, if it is time and it did something."""

        async def whole(tx: Tx) -> T:
            result = await work(tx)
            self.at(n, "inside", result)
            return result

        result = await self.db.apply(whole)  # which tries again after a deadlock
        self.at(n, "after", result)
        return result

    def at(self, n: int, where: str, result: object = True) -> None:
        """The place of a death in round ``n``, which did something if ``result`` is true."""
        if self.doomed(n) and self.die == where and result:
            os.kill(os.getpid(), signal.SIGKILL)

    def doomed(self, n: int) -> bool:
        return bool(self.die) and n >= self.rounds // 4


async def identities(r: Racer) -> None:
    """VMID and address together, as a creation reserves them."""

    async def reserve(tx: Tx) -> tuple[int, str]:
        server = f"{r.name}-{tx.now}"
        return (
            await vmids.reserve(tx, server, RANGES.vmid_first, RANGES.vmid_last),
            await addresses.reserve(tx, server, RANGES.pool, RANGES.address_first, RANGES.gateway),
        )

    for n in range(r.rounds):
        vmid, address = await r.write(reserve, n=n)
        r.say(vmid=vmid, address=address)


async def orders(r: Racer) -> None:
    """Creations by the front door's own function, for the customers named; every fourth one under a name that all want."""
    for n in range(r.rounds):
        order = order_of(r.subjects[n % len(r.subjects)], f"same-{n}" if n % 4 == 1 else f"{r.name}-{n}", f"{r.name}-{n}")

        async def create(tx: Tx, order: Creation = order, n: int = n) -> Any:
            accepted = await intake.create(tx, order, place=lambda request, nodes: place(request, nodes, Headroom(0, 0.0, 0.0)), ranges=RANGES)
            r.at(n, "inside")
            return accepted

        try:
            accepted = await r.db.apply(create)
        except AutomationError as error:
            r.say(refused=getattr(error, "kind", "") or type(error).__name__, nonce=order.nonce, text=str(error))
            continue
        r.at(n, "after")
        r.say(server=accepted.server.id, vmid=accepted.server.vmid, node=accepted.server.node, nonce=order.nonce)


def order_of(customer: str, name: str, nonce: str) -> Creation:
    return Creation(customer, f"customer:{customer}", ContainerType.GAME, name, "fabric", "1.21.1", MEMORY_MB, 1, DISK_GB, nonce, f"hash of {nonce}")


async def leased(r: Racer) -> None:
    """Takes the one lease, says so in the audit log under its protection, and gives it back; the dying one keeps it until it expires."""
    n = 0
    while n < r.rounds:

        async def take(tx: Tx, n: int = n) -> Any:
            return await leases.take(tx, r.subjects[0], LeaseKind.REPAIR, r.name, 500 if r.doomed(n) else 30_000)

        try:
            lease = await r.write(take, n=n)
        except AutomationError as error:
            if type(error).__name__ != "Busy":
                raise
            await asyncio.sleep(0.002)
            continue
        await _use(r, lease.token)
        n += 1
    r.say(done=n)


async def _use(r: Racer, token: int) -> None:
    try:
        async with r.db.write() as tx:
            await leases.check(tx, r.subjects[0], token)
            await audit.append(tx, r.name, "begin", str(token))
        async with r.db.write() as tx:
            await leases.renew(tx, r.subjects[0], token, 30_000)
        async with r.db.write() as tx:
            await leases.check(tx, r.subjects[0], token)
            await audit.append(tx, r.name, "end", str(token))
            await leases.release(tx, r.subjects[0], token)
    except Fenced as error:
        r.say(fenced=str(error))


async def sweeps(r: Racer) -> None:
    """One sweep after the other, each as in ``reconcile``: begin, write under the epoch, end. The dying one leaves its epoch to expire."""
    n = 0
    while n < r.rounds:
        ttl = 500 if r.doomed(n) else 30_000
        epoch = await epochs.begin(r.db, r.name, ttl)
        if epoch is None:
            await asyncio.sleep(0.002)
            continue
        try:
            for step in ("begin", "end"):
                async with r.db.write(epoch=epoch) as tx:
                    await audit.append(tx, r.name, step, str(epoch))
                    r.at(n, "inside")
                r.at(n, "after")
                await epochs.renew(r.db, epoch, r.name, ttl)
            await epochs.end(r.db, epoch, r.name)
        except Fenced as error:
            r.say(fenced=str(error))
        n += 1
    r.say(done=n)


async def messages(r: Racer) -> None:
    """Claims messages as dispatchers do, and sends them (says so), until none is left for a while."""
    idle, n = 0, 0
    while idle < 50:
        claimed = await r.write(lambda tx: outbox.claim(tx, r.name, tx.now + (700 if r.die else 60_000), 3), n=n)
        n += 1
        idle = 0 if claimed else idle + 1
        for message in claimed:
            r.say(sent=message.key, doubted=message.doubted)
            await r.write(lambda tx, id_=message.id: outbox.sent(tx, id_), n=-1)  # type: ignore[misc]  # a lambda with a default
        if not claimed:
            await asyncio.sleep(0.02)


async def runs(r: Racer) -> None:
    """Submitters and runs at once: claims attempts for submission, and each operation's attempt as its run would.

    Two operations are there for those that die: the others take them when both are dead.
    """
    async with r.db.read() as tx:
        generation = await control.generation(tx)
    last, others = r.subjects[:2], random.Random(r.name).sample(r.subjects[2:], len(r.subjects) - 2)
    for n, operation_id in enumerate([*others, *last]):
        if operation_id == last[0] and not r.die:
            sys.stdin.readline()
        got = await r.write(lambda tx: attempts.claim_for_submission(tx, r.name, tx.now + 60_000, 2), n=-1)
        for submission in got:
            r.say(submitted=submission.operation_id)
        try:
            await r.write(
                lambda tx, o=operation_id: attempts.claim_run(tx, o, 1, generation, r.name, 60_000),  # type: ignore[misc]  # a lambda with a default
                n=n,
            )
        except Fenced:
            continue
        r.say(run=operation_id)


SCENARIOS: dict[str, Callable[[Racer], Awaitable[None]]] = {f.__name__: f for f in (identities, orders, leased, sweeps, messages, runs)}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--die", choices=["inside", "after"], default="")
    parser.add_argument("--subjects", default="")
    given = parser.parse_args()
    db = Database(os.environ["ZLH_DATABASE__URL"])
    async with db.read():
        pass  # connected
    print("ready", flush=True)
    sys.stdin.readline()
    await SCENARIOS[given.scenario](Racer(db, given.name, given.rounds, given.die, [s for s in given.subjects.split(",") if s]))
    await db.close()


if __name__ == "__main__":
    asyncio.run(main())
