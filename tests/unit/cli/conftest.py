"""``zlh`` in this process against a real SQLite database; ``api`` puts the real front door on a loopback port behind it."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import insert

from flows.api.deps import ApiDeps
from flows.api.serve import serve
from flows.bootstrap import router
from flows.cli import session
from flows.cli.main import run
from flows.domain.lease import LeaseKind
from flows.domain.server import ServerState
from flows.settings import load
from flows.state import audit, leases, migrate, operations, servers, tokens, vmids
from flows.state import tables as t
from flows.state.database import Database, Tx
from flows.state.ids import new_id
from tests.unit.state.conftest import Make

T = TypeVar("T")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@dataclass
class Said:
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "zlh.db"
    migrate.upgrade_sync(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
def home(tmp_path: Path, schema: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a migrated database and the env file that names it; nothing else of this machine's is seen."""
    shutil.copy(schema, tmp_path / "zlh.db")
    (tmp_path / "zlh.env").write_text(f"ZLH_DATABASE__URL=sqlite+aiosqlite:///{tmp_path}/zlh.db\nZLH_AGENT__CA_DIR={tmp_path}/ca\n")
    for variable in [name for name in os.environ if name.startswith("ZLH_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("ZLH_ENV_FILE", str(tmp_path / "zlh.env"))
    monkeypatch.setenv("TZ", "Europe/Berlin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def zlh(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def call(*arguments: str) -> Said:
        capsys.readouterr()
        status = run(list(arguments))
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return call


@pytest.fixture
def write(home: Path) -> Callable[[Callable[[Tx], Awaitable[Any]]], Any]:
    return session.write


@dataclass
class Fleet:
    """What :func:`fleet` put into the database."""

    ids: dict[str, str]


@pytest.fixture
def fleet(write: Callable[[Callable[[Tx], Awaitable[Any]]], Any]) -> Fleet:
    """A row of everything: two customers, servers ``fern`` (active, being restarted), ``moss`` (active) and ``gone`` (deleted)."""

    async def fill(tx: Tx) -> dict[str, str]:
        make, ids = Make(), {}
        alice, bob = await make.customer(tx), await make.customer(tx)
        ids["customer"], ids["other"] = alice.id, bob.id
        for name, node in (("fern", "pve1"), ("moss", "pve2"), ("gone", "pve1")):
            server = await make.server(tx, customer_id=alice.id if name != "moss" else bob.id, name=name, node=node)
            ids[name] = server.id
            await servers.set_state(tx, server.id, ServerState.ACTIVE, "test")
        operation = await make.operation(tx, await servers.get(tx, ids["fern"]))
        ids["operation"] = operation.id
        await operations.set_step(tx, operation.id, None, None)
        await servers.set_state(tx, ids["gone"], ServerState.DELETING, "test")
        await servers.mark_deleted(tx, ids["gone"], "test")
        await leases.take(tx, ids["fern"], LeaseKind.OPERATION, "host:1:ab", 60_000, operation_id=operation.id)
        ids["token"], _ = await tokens.create(tx, customer_id=alice.id, role="customer", label="game panel")
        ids["finding"], ids["closed"] = new_id(), new_id()
        for key, closed in (("finding", None), ("closed", tx.now - HOUR)):
            await tx.execute(
                insert(t.episodes).values(
                    id=ids[key], open_key=None if closed else f"agent_offline/{ids['moss']}", check="agent_offline", subject=ids["moss"],
                    server_id=ids["moss"], summary="moss: its agent does not answer", remedy="zlh restart-agent moss", reason="level_disabled",
                    severity=1, evidence={"a": 1}, opened_at=tx.now - 2 * HOUR, last_seen_at=tx.now, closed_at=closed,
                )
            )  # fmt: skip
        for number in range(3):
            ids[f"repair{number}"] = new_id()
            await tx.execute(
                insert(t.repairs).values(
                    id=ids[f"repair{number}"], check="dns_record", action="publish_dns", subject=ids["moss"], server_id=ids["moss"], host="pve2",
                    level=1, counted=True, epoch=1, intent_at=tx.now - (number + 1) * MINUTE, outcome="failed", outcome_at=tx.now - number * MINUTE,
                )
            )  # fmt: skip
        await vmids.burn(tx, 10_777, "taken by a container that is not ours")
        ids["backup"] = new_id()
        await tx.execute(
            insert(t.backups).values(
                id=ids["backup"], server_id=ids["moss"], type="full", reason="daily", created_at=tx.now - DAY, size_bytes=5, sha256="0" * 64,
                location="nas:1", verified_at=tx.now - DAY,
            )
        )  # fmt: skip
        ids["review"] = new_id()
        await tx.execute(
            insert(t.reviews).values(
                id=ids["review"], server_id=ids["moss"], check="agent_offline", action="publish_dns", plan_hash="0" * 64, plan={}, requested_by="x",
                requested_at=tx.now, expires_at=tx.now + DAY,
            )
        )  # fmt: skip
        await audit.append(tx, "cli:root", "customer.add", f"customer:{alice.id}", detail={"name": alice.name})
        return ids

    return Fleet(write(fill))


@pytest.fixture
def api(home: Path, write: Callable[[Callable[[Tx], Awaitable[Any]]], Any]) -> Iterator[str]:
    """The front door's address; the env file knows it, and an admin's token."""

    async def token(tx: Tx) -> str:
        return (await tokens.create(tx, customer_id=None, role="admin", label="test"))[1]

    secret, ready, stopping = write(token), threading.Event(), threading.Event()
    addresses: list[str] = []

    async def serving() -> None:
        settings = load({"ZLH_ENV_FILE": str(home / "zlh.env"), "ZLH_API__PUBLIC_BIND": "127.0.0.1:0", "ZLH_API__CONTROL_BIND": "127.0.0.1:0"})
        database, stop = Database(settings.database.url.get_secret_value()), asyncio.Event()

        def on_ready(public: str, control: str) -> None:
            addresses.append(public)
            ready.set()

        async def watch() -> None:
            await asyncio.to_thread(stopping.wait)
            stop.set()

        watching = asyncio.create_task(watch())
        await serve(ApiDeps(database, settings, router(settings)), stop, on_ready)
        await watching
        await database.close()

    thread = threading.Thread(target=lambda: asyncio.run(serving()))
    thread.start()
    assert ready.wait(20)
    with (home / "zlh.env").open("a") as file:
        file.write(f"ZLH_API__PUBLIC_BIND={addresses[0]}\nZLH_API__ADMIN_TOKEN={secret}\n")
    yield addresses[0]
    stopping.set()
    thread.join(20)
