"""People: what customers order at the front door and operators type, by the product's own functions. Refusals are theirs to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import update

from flows.act import approvals
from flows.act.policy import policy_of
from flows.decide.placement import place
from flows.domain.finding import BrakeScope
from flows.domain.intake import Creation, Ranges
from flows.domain.lease import LeaseKind
from flows.domain.operation import OperationKind
from flows.domain.placement import Headroom
from flows.domain.server import ContainerType
from flows.errors import AutomationError, Unreachable
from flows.simulate.controllers import Controllers
from flows.simulate.fleet import FIRST_VMID
from flows.simulate.plan import Fault
from flows.state import accounts, backups, brakes, control, intake, leases, orders, servers
from flows.state import tables as t
from flows.state.database import Tx

ACTOR = "operator:person"
#: A person whose order met a database that was away tries again so often, with so many seconds between.
TRIES, PAUSE_S = 20, 30.0
Undo = Callable[[], object] | None


@dataclass
class People:
    """``strangers``: VMIDs that a person made and will remove. ``deleted``: names whose server was ordered gone."""

    controllers: Controllers
    strangers: set[int] = field(default_factory=set)
    said: Callable[[str], None] = lambda line: None
    lowered_at: float = -1e9

    def __post_init__(self) -> None:
        c = self.controllers
        self._policy = policy_of(c.settings)
        vmid, network = c.settings.vmid, c.settings.network
        self._ranges = Ranges(vmid.first, vmid.last, network.pool, "10.20.100.1", network.gateway, int(c.settings.timing.operation_s * 1000))
        assert vmid.first == FIRST_VMID

    def fqdn(self, name: str) -> str:
        return f"{name}.{self._policy.game_domain}"

    def _do(self, what: str, work: Callable[[Tx], Awaitable[object]]) -> None:
        self._go(self._written(what, work))

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        c = self.controllers
        process = c.process("person", "desk")
        c.spawn(process, work)

    async def _written(self, what: str, work: Callable[[Tx], Awaitable[object]]) -> None:
        database = self.controllers.store.database()
        for _ in range(TRIES):
            try:
                async with database.write() as tx:
                    await work(tx)
            except Unreachable:
                await self.controllers.loop.nap(PAUSE_S)
            except AutomationError as error:
                self.said(f"{what}: refused: {error}")
                return
            else:
                self.said(what)
                return

    # Orders

    def order(self, fault: Fault) -> Undo:
        deadline = self._ranges.operation_ms

        async def work(tx: Tx) -> None:
            server = await servers.by_name(tx, fault.target)
            if server is None:
                return
            if fault.arg == "delete":
                await orders.delete(tx, server.id, "customer", deadline_ms=deadline)
            else:
                await orders.control(tx, server.id, OperationKind(fault.arg), "customer", deadline_ms=deadline)

        self._do(f"{fault.arg} {fault.target}", work)
        return None

    def create(self, fault: Fault) -> Undo:
        ctype = ContainerType.DEV if fault.arg == "dev" else ContainerType.GAME
        flavor = fault.arg or "paper"
        reader = self.controllers.store.reader
        customer = reader.execute("SELECT id FROM customers WHERE billing = 'active' ORDER BY name LIMIT 1").fetchone()
        if customer is None:
            return None
        version = "1" if flavor == "dev" else "1.21.1"
        creation = Creation(customer[0], "customer", ctype, fault.target, flavor, version, 2048, 2, 10, fault.target, fault.target)

        async def work(tx: Tx) -> None:
            await intake.create(tx, creation, place=lambda request, nodes: place(request, nodes, Headroom()), ranges=self._ranges)

        self._do(f"create {fault.target}", work)
        return None

    def suspend(self, fault: Fault) -> Undo:
        found = self.controllers.store.reader.execute("SELECT customer_id FROM servers WHERE live_name = ?", (fault.target,)).fetchone()
        if found is None:
            return None
        self._do(f"suspend {fault.target}'s customer", lambda tx: accounts.suspend(tx, found[0], ACTOR))
        return lambda: self._do(f"resume {fault.target}'s customer", lambda tx: accounts.resume(tx, found[0], ACTOR))

    # Brakes

    def brake(self, fault: Fault) -> Undo:
        scope = BrakeScope.ALL if fault.target == "all" else BrakeScope.HOST if fault.target.startswith("pve") else BrakeScope.SERVER
        target = "" if scope is BrakeScope.ALL else fault.target if scope is BrakeScope.HOST else self.controllers.server_of(fault.target)
        if scope is BrakeScope.SERVER and not target:
            return None

        self._do(f"pause {fault.target}", lambda tx: brakes.pause(tx, scope, target, "a look", ACTOR))
        return lambda: self._do(f"resume {fault.target}", lambda tx: brakes.resume(tx, scope, target, ACTOR))

    def level(self, fault: Fault) -> Undo:
        self.lowered_at = self.controllers.loop.time()
        self._do(f"repair-level {fault.arg}", lambda tx: control.set_repair_level(tx, int(fault.arg), ACTOR))

        def back() -> None:
            self.lowered_at = self.controllers.loop.time()
            self._do("repair-level 1", lambda tx: control.set_repair_level(tx, 1, ACTOR))

        return back

    def hold(self, fault: Fault) -> Undo:
        """``zlh maintenance``: a lease that keeps everybody away."""
        server_id = self.controllers.server_of(fault.target)
        if not server_id:
            return None
        ttl = int((fault.duration + 60) * 1000)

        async def take(tx: Tx) -> None:
            held.append(await leases.take(tx, server_id, LeaseKind.MAINTENANCE, "person", ttl, reason="a look"))

        async def release(tx: Tx) -> None:
            if held:
                await leases.release(tx, server_id, held[0].token)

        held: list[Any] = []
        self._do(f"maintenance {fault.target}", take)
        return lambda: self._do(f"maintenance {fault.target} over", release)

    def abandon(self, fault: Fault) -> Undo:
        """A patch that was begun and left: its lease runs out, and blocks until a person frees it."""
        server_id = self.controllers.server_of(fault.target)
        if not server_id:
            return None
        held: list[Any] = []

        async def take(tx: Tx) -> None:
            held.append(await leases.take(tx, server_id, LeaseKind.PATCH, ACTOR, int(fault.duration * 500), reason="a patch"))

        async def release(tx: Tx) -> None:
            if held:
                await leases.release(tx, server_id, held[0].token)

        self._do(f"patch {fault.target}", take)
        return lambda: self._do(f"patch {fault.target} over", release)

    # Backups

    def policy(self, fault: Fault) -> Undo:
        """How often a server is to be backed up."""
        server_id = self.controllers.server_of(fault.target)
        change = update(t.servers).where(t.servers.c.id == server_id).values(backup_policy=fault.arg)
        self._do(f"policy {fault.target}", lambda tx: tx.execute(change))
        return None

    def backup(self, fault: Fault) -> Undo:
        """A backup was made, and proven to restore."""
        server_id = self.controllers.server_of(fault.target)

        async def made(tx: Tx) -> None:
            made = await backups.add(tx, server_id=server_id, type_="full", reason="a person", size_bytes=1, sha256="0" * 64, location="a disk")
            await backups.verified(tx, made.id)

        if server_id:
            self._do(f"backup {fault.target}", made)
        return None

    # Reviews

    def approve(self, fault: Fault) -> Undo:
        """``zlh approve``, of whatever waits for a decision on this server, or on anything where no target is said."""
        c = self.controllers
        server_id = c.server_of(fault.target)
        query = "SELECT id FROM reviews WHERE decision IS NULL AND expires_at > ? AND (? = '' OR server_id = ?) ORDER BY id"
        waiting = [row[0] for row in c.store.reader.execute(query, (c.store.now(), fault.target, server_id))]
        process = c.process("person", "desk")

        async def approved() -> None:
            for review_id in waiting:
                try:
                    await approvals.approve(c.deps(process), review_id, ACTOR)
                except AutomationError as error:
                    self.said(f"approve {fault.target}: refused: {error}")
                else:
                    self.said(f"approve {fault.target}")

        c.spawn(process, approved())
        return None

    # The bridge's start

    def rehydrate(self) -> None:
        """A bridge that starts asks our listener until it answers."""

        async def pull() -> None:
            while True:
                try:
                    await self.controllers.proxy.rehydrate()
                except AutomationError:
                    await self.controllers.loop.nap(PAUSE_S)
                else:
                    return

        self._go(pull())
