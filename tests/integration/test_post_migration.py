"""The flow after a migration, without Prefect: real front door, dispatcher, executors, Redis, and the simulated fleet."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import update

from flows import bootstrap
from flows.act import post_migration as migration
from flows.act import trial
from flows.clients.gate import RedisGate
from flows.clients.redis_server import RedisServer
from flows.domain.lease import LeaseKind
from flows.domain.sources import EngineRun
from flows.domain.validation import Part
from flows.observe.validation import Lookers
from flows.settings import RedisSettings
from flows.state import audit, control, leases, tokens
from flows.state import tables as t
from tests.support.controller import Controller
from tests.support.live import Live, live
from tests.support.servers import Redis, running

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed; playbooks/lab.yml installs it"),
]
WISH = trial.Wish(memory_mb=1024, disk_gb=8)


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with running(Redis()) as started:
        assert isinstance(started, Redis)
        yield started


@dataclass
class OldRuns:
    """An engine that still knows a run of before; this flow's own, a sweep's and a digest's as a schedule names them; and one ordered since."""

    ended: list[str] = field(default_factory=list)

    async def active(self) -> Sequence[EngineRun]:
        keys = {
            "old": "1:op:1",
            "sweep": "",
            "self": "key",
            "digest": "scheduled 0f3c 7b21 2026-11-22T07:00:00+00:00",
            "new": f"{1 << 60}:op:1",
        }
        return [EngineRun(name, key, "running", False) for name, key in keys.items()]

    async def give_up(self, run_id: str, reason: str) -> None:
        self.ended.append(run_id)


@dataclass(frozen=True)
class _Worker:
    name: str = "zlh:here:1"
    online: bool = True


@asynccontextmanager
async def parts(run: Controller, system: Live, server: Redis) -> AsyncIterator[migration.Parts]:
    redis_settings = RedisSettings(url=SecretStr(server.url), prefix="zlh:")
    redis, gate = RedisServer(redis_settings), RedisGate(redis_settings)

    async def workers() -> Sequence[_Worker]:
        return [_Worker()]

    async def converge() -> None:
        return None

    def door(token: SecretStr) -> trial.FrontDoor:
        return bootstrap.front_door(system.settings.model_copy(update={"api": system.settings.api.model_copy(update={"admin_token": token})}))

    settings = system.settings.model_copy(update={"redis": redis_settings})
    here = run.deps.holder.partition(":")[0]
    look = Lookers(settings, run.deps.database, run.deps.proxmox, workers, redis.clients, here)
    look = replace(
        look,
        settings=settings.model_copy(update={"topology": settings.topology.model_copy(update={"hosts": (f"{here}=127.0.0.1", "here=127.0.0.1")})}),
    )
    try:
        yield migration.Parts(replace(run.deps, settings=settings), look, gate, redis, converge, OldRuns(), door, WISH, "self")
    finally:
        await redis.close()
        await gate.close()


async def create(system: Live, customer_id: str, secret: str, nonce: str) -> httpx.Response:
    body = {"ctype": "game", "name": f"n-{nonce}", "flavor": "fabric", "version": "1.21.4", "memory_mb": 1024, "cores": 1, "disk_gb": 8}
    async with httpx.AsyncClient(base_url=f"http://{system.settings.api.public_bind}", headers={"Authorization": f"Bearer {secret}"}) as http:
        return await http.post("/api/servers/create", json=body | {"request_nonce": nonce, "customer_id": customer_id}, timeout=20)


async def customers_token(run: Controller) -> str:
    async with run.deps.database.write() as tx:
        return (await tokens.create(tx, customer_id=run.world.customer_id, role="customer", label="a customer"))[1]


async def test_everybody_else_waits_until_it_passed(run: Controller, server: Redis) -> None:
    with server.client() as client:
        client.set("zlh:old", "1")
    async with run.deps.database.read() as tx:
        before = await control.generation(tx)
    async with live(run) as system, parts(run, system, server) as made:
        secret, said = await customers_token(run), []
        refused: list[int] = []

        def say(line: str) -> None:
            said.append(line)

        async def knock() -> None:
            """Another customer and another admin, all the while."""
            while True:
                for token in (secret, system.settings.api.admin_token.get_secret_value()):
                    answer = await create(system, run.world.customer_id, token, f"x{len(refused)}")
                    if answer.status_code == 503 or refused:
                        refused.append(answer.status_code)
                await asyncio.sleep(0.2)

        begun = asyncio.create_task(migration.run(made, say))
        async with asyncio.timeout(20):
            while True:
                async with run.deps.database.read() as tx:
                    if await control.intake_closed(tx):
                        break
                await asyncio.sleep(0.01)
        knocking = asyncio.create_task(knock())
        while not any(line.startswith("ordered") for line in said) and not begun.done():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        knocking.cancel()
        ending = await begun
        assert ending.stopped_at is None, (ending, said)
        assert len(refused) >= 4
        assert set(refused) == {503}
        async with run.deps.database.read() as tx:
            assert not await control.intake_closed(tx)
            assert await control.generation(tx) > before
            actions = [line.action for line in await audit.list_(tx, actor=migration.ACTOR, limit=10)]
            assert not [row for row in await tokens.list_(tx) if row.label == "post-migration" and row.revoked_at is None]
        assert actions[0] == "post_migration.passed"
        assert isinstance(made.engine, OldRuns)
        assert made.engine.ended == ["old"]
    with server.client() as client:
        assert client.get("zlh:old") is None
    assert [line.partition(":")[0] for line in said if ": passed" in line] == ["database", "reset", "workers", "provisioning"]


async def stopped(run: Controller, server: Redis, **changes: Any) -> tuple[migration.Ending, bool]:
    async with live(run, deliver=False) as system, parts(run, system, server) as made:
        ending = await migration.run(replace(made, **changes), run.log.append)
        async with run.deps.database.write() as tx:
            closed = await control.intake_closed(tx)
            await control.set_intake_closed(tx, False, "test")
    return ending, closed


async def test_a_finding_of_the_database_stops_it_and_names_the_restore_that_is_not_there_yet(run: Controller, server: Redis) -> None:
    async with run.deps.database.write() as tx:
        await tx.execute(t.vmids.insert().values(vmid=19_999, state="reserved", server_id="nobody", since=tx.now, reason=""))
    try:
        ending, closed = await stopped(run, server)
    finally:
        async with run.deps.database.write() as tx:
            await tx.execute(t.vmids.delete().where(t.vmids.c.vmid == 19_999))
    assert ending.stopped_at is Part.DATABASE
    assert closed
    assert any("restore-database" in u.why for u in ending.report.unlooked)
    assert not [line for line in ending.report.looked if line.startswith("sweep")]


async def test_a_lease_that_lasts_stops_the_resets(run: Controller, server: Redis) -> None:
    async with run.deps.database.write() as tx:
        lease = await leases.take(tx, "dns:somewhere", LeaseKind.REPAIR, "host:1:0123abcd", 600_000)
    timing = run.deps.settings.timing.model_copy(update={"lease_s": 0.2, "sweep_s": 0.1})
    async with live(run, deliver=False) as system, parts(run, system, server) as made:
        hurried = replace(made, deps=replace(made.deps, settings=made.deps.settings.model_copy(update={"timing": timing})))
        ending = await migration.run(hurried, run.log.append)
        async with run.deps.database.write() as tx:
            await control.set_intake_closed(tx, False, "test")
            await leases.release(tx, lease.subject, lease.token)
    assert ending.stopped_at is Part.RESET
    assert "repair of dns:somewhere" in ending.report.unlooked[0].why


async def test_a_stranger_stops_it_before_anything_is_created(run: Controller, server: Redis) -> None:
    async with live(run, deliver=False) as system, parts(run, system, server) as made:

        async def workers() -> Sequence[_Worker]:
            return [_Worker(), _Worker("zlh:old-host:7")]

        ending = await migration.run(replace(made, look=replace(made.look, workers=workers)), run.log.append)
        async with run.deps.database.write() as tx:
            await control.set_intake_closed(tx, False, "test")
            rows = (
                await tx.execute(update(t.servers).where(t.servers.c.name.like("validate-%"), t.servers.c.state != "deleted").values(edge="open"))
            ).rowcount
    assert ending.stopped_at is Part.WORKERS
    assert {p.rule for p in ending.report.problems} == {"unexpected_host", "too_many_workers"}
    assert rows == 0


async def test_whoever_dies_in_the_middle_leaves_intake_closed(run: Controller, server: Redis) -> None:
    async with live(run, deliver=False) as system, parts(run, system, server) as made:

        async def hang() -> Mapping[str, Any]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await migration.run(replace(made, converge=hang), run.log.append)  # type: ignore[arg-type]  # it never returns
        async with run.deps.database.write() as tx:
            assert await control.intake_closed(tx)
            assert not await control.end_pass(tx, "another run's", "test", closed=False)
            await control.set_intake_closed(tx, False, "test")
