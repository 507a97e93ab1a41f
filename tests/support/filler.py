"""Orders servers on SQLite until its disk is full, makes room, and orders on: ``python -m tests.support.filler DIRECTORY``, a small file system.

Says one JSON object: how many orders were taken before and after, how the others failed, and whether what was there stayed readable.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

from flows.decide.placement import place
from flows.domain.node import Node
from flows.errors import Unreachable
from flows.state import customers, intake, migrate, nodes
from flows.state.customers import PlanLimits
from flows.state.database import Database, Tx
from tests.support import racer


async def main(directory: Path) -> None:
    url = f"sqlite+aiosqlite:///{directory}/zlh.db"
    await migrate.upgrade(url)
    (directory / "ballast").write_bytes(bytes(200_000))
    db = Database(url)
    async with db.write() as tx:
        await customers.put_plan(tx, PlanLimits("wide", 10**4, 10**7, 10**6, 1))
        await nodes.put(tx, Node("pve1", 10**6, 10**5, 16, "local-lvm", "vmbr0", {"fabric": 9000}))
        owner = (await customers.add(tx, "Ada", "wide")).id

    async def order(name: str) -> str:
        async def create(tx: Tx) -> Any:
            return await intake.create(tx, racer.order_of(owner, name, name), place=place, ranges=racer.RANGES)

        return str((await db.apply(create)).server.id)

    taken: list[str] = []
    failed: list[str] = []
    with (directory / "filler").open("wb", buffering=0) as filler:
        while len(failed) < 3:
            try:
                taken.append(await order(f"s{len(taken)}"))
                filler.write(bytes(16_384))
            except Unreachable as error:
                failed.append(str(error))
            except OSError:  # the file system is full but for what the database has already
                pass
    async with db.read() as tx:
        readable = len(await customers.list_(tx))
    (directory / "ballast").unlink()
    (directory / "filler").unlink()
    after = [await order(f"s{len(taken) + n}") for n in range(3)]
    await db.close()
    with sqlite3.connect(directory / "zlh.db") as raw:
        sound = raw.execute("PRAGMA integrity_check").fetchone()[0]
        tables = ("servers", "vmids", "addresses", "operations", "attempts")
        parts = {name: raw.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}  # noqa: S608 - names of our own
    raw.close()
    print(json.dumps({"taken": len(taken), "failed": failed, "readable": readable, "after": len(after), "sound": sound, "parts": parts}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
