"""Who is at work, as real servers tell it: connections of MariaDB and PostgreSQL, holders in rows; and who is a stranger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.domain.lease import LeaseKind
from flows.domain.topology import Peer
from flows.errors import Unreachable
from flows.observe.validation import Lookers, workers
from flows.settings import Settings
from flows.state import epochs, leases, migrate, sweeps
from flows.state.database import Database
from tests.support.servers import DATABASES, DatabaseServer, running

pytestmark = pytest.mark.timeout(120)
HERE = "control1"


@dataclass(frozen=True)
class Worker:
    name: str
    online: bool = True


async def nobody() -> Sequence[Worker]:
    return []


@pytest.fixture(scope="module", params=sorted(DATABASES))
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    kind = DATABASES[request.param]
    if kind.program() is None:
        pytest.skip(f"{request.param} is not installed; playbooks/lab.yml installs it")
    with running(kind()) as server:
        assert isinstance(server, DatabaseServer)
        made = server.create("zlh_topology")
        migrate.upgrade_sync(made)
        yield made


def settings(url: str, *hosts: str) -> Settings:
    return Settings.model_validate({"database": {"url": SecretStr(url)}, "topology": {"hosts": hosts}})


async def test_another_connection_is_seen_and_judged_by_its_address(url: str) -> None:
    database, other = Database(url), Database(url)
    try:
        async with other.read():  # somebody's, for as long as we look
            alone = await workers(Lookers(settings(url), database, None, nobody, None, HERE))  # type: ignore[arg-type]  # asks no Proxmox
            assert alone.clean, alone
            assert "1 database connections" in "; ".join(alone.looked)
            elsewhere = await workers(Lookers(settings(url, "control2=10.0.0.2"), database, None, nobody, None, HERE))  # type: ignore[arg-type]  # as above
        [problem] = elsewhere.problems
        assert problem.rule == "unexpected_host"
        assert "database connection" in problem.says
        assert "ZLH_TOPOLOGY__HOSTS" in problem.remedy
    finally:
        await database.close()
        await other.close()


async def test_holders_are_judged_by_the_machine_they_name(url: str) -> None:
    """A sweep, an epoch and a lease of the old machine; a person's maintenance is no machine's."""
    database = Database(url)
    try:
        epoch = await epochs.begin(database, "old-control:7:0123abcd", 600_000)
        assert epoch is not None
        async with database.write() as tx:
            await sweeps.start(tx, epoch, "old-control:7:0123abcd")
            lease = await leases.take(tx, "dns:x", LeaseKind.REPAIR, f"{HERE}:8:0123abcd", 600_000)
            person = await leases.take(tx, "dns:y", LeaseKind.MAINTENANCE, "cli:eve", 600_000)
        report = await workers(Lookers(settings(url), database, None, nobody, None, HERE))  # type: ignore[arg-type]  # as above
        assert [(p.rule, "controller on old-control" in p.says) for p in report.problems] == [("unexpected_host", True)]
        both = await workers(Lookers(settings(url, f"{HERE}=127.0.0.1", "old-control=10.0.0.9"), database, None, nobody, None, HERE))  # type: ignore[arg-type]  # as above
        assert both.clean, both
        async with database.write() as tx:
            await leases.release(tx, lease.subject, lease.token)
            await leases.release(tx, person.subject, person.token)
        await epochs.end(database, epoch, "old-control:7:0123abcd")
    finally:
        await database.close()


async def test_what_does_not_answer_is_not_clean(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/zlh.db"
    await migrate.upgrade(url)
    database = Database(url)

    async def silent() -> Sequence[Peer]:
        raise Unreachable("redis", why="gone")

    async def deaf() -> Sequence[Worker]:
        raise Unreachable("engine", why="gone")

    try:
        report = await workers(Lookers(settings(url), database, None, deaf, silent, HERE))  # type: ignore[arg-type]  # as above
    finally:
        await database.close()
    assert not report.problems
    assert {u.what for u in report.unlooked} == {"the engine's workers", "Redis' clients"}
