"""The disk of the database is full: orders are refused with what to do, nothing is half-done, and with room again all goes on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from flows.errors import Unreachable
from flows.state import migrate
from flows.state import tables as t
from flows.state.database import Database
from tests.support import servers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


def test_sqlite(tmp_path: Path) -> None:
    """On a file system of 2 MB that only this process sees."""
    mount = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -m tests.support.filler "$1"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    said = json.loads(done.stdout)
    assert said["taken"] > 0
    assert all("make room" in text for text in said["failed"]), said
    assert (said["readable"], said["after"], said["sound"]) == (1, 3, "ok")
    assert set(said["parts"].values()) == {said["taken"] + 3}
    assert not list(tmp_path.iterdir()), "the mount was visible outside"


@pytest.fixture
def small() -> Iterator[servers.MariaDB]:
    """Tables in files of a fixed size."""
    server = servers.MariaDB(extra={"innodb-file-per-table": "0", "innodb-data-file-path": "ibdata1:12M;ibdata2:12M"})
    with servers.running(server):
        yield server


def test_mariadb(small: servers.MariaDB) -> None:
    asyncio.run(_fill(small.create("zlh_small")))


async def _fill(url: str) -> None:
    await migrate.upgrade(url)
    db = Database(url)
    line = {"at": 1, "actor": "a", "action": "a", "subject": "s", "detail": {"x": "y" * 4_000}}
    written = 0
    with pytest.raises(Unreachable, match="make room"):
        for _ in range(1_000):
            async with db.write() as tx:
                await tx.execute(insert(t.audit), [line] * 20)
            written += 20
    async with db.read() as tx:
        kept = (await tx.execute(t.audit.select().with_only_columns(t.audit.c.id))).all()
    assert len(kept) == written > 0
    await db.close()
