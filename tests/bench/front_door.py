"""Orders through the front door: latency under an open loop, throughput under a closed one, beside a bare Node.js server.

A real process serves (``python -m tests.bench.front_door serve DIRECTORY``: both listeners, uvicorn, a SQLite file on disk with full
durability); this one sends. The open loop offers requests on schedule whether or not earlier ones were answered, and counts each latency
from the moment it was *due*: a server that stalls cannot hide it. The peer answers 202 and does nothing at all: the price of HTTP alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CONNECTIONS = 50
RATE = 50  # orders per second offered
SECONDS = 20.0
CLOSED_SECONDS = 5.0
WARM_UP = 50
TARGET_MEDIAN_MS, TARGET_P99_MS = 20.0, 100.0

PEER = """
const server = require("http").createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    JSON.parse(Buffer.concat(parts));
    const body = JSON.stringify({ operation: { id: "0" }, deduplicated: false });
    response.writeHead(202, { "content-type": "application/json", location: "/api/operations/0" });
    response.end(body);
  });
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ public: "127.0.0.1:" + server.address().port, tokens: ["x"] })));
"""


def run(seconds: float = SECONDS, closed_seconds: float = CLOSED_SECONDS) -> dict[str, Any]:
    """Measures and returns everything as plain data; ``ok`` says whether the targets were met."""
    return asyncio.run(_run(seconds, closed_seconds))


async def _run(seconds: float, closed_seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="zlh-bench-") as directory:
        async with _process([sys.executable, "-m", "tests.bench.front_door", "serve", directory]) as told:
            ours = await _measure(told, seconds, closed_seconds)
    result: dict[str, Any] = {
        "name": "front_door",
        "rate_offered": RATE,
        "connections": CONNECTIONS,
        "database": "sqlite, WAL, synchronous=FULL",
        "ours": ours,
        "targets": {"median_ms": TARGET_MEDIAN_MS, "p99_ms": TARGET_P99_MS},
        "ok": ours["open"]["median_ms"] < TARGET_MEDIAN_MS and ours["open"]["p99_ms"] < TARGET_P99_MS and ours["open"]["failed"] == 0,
    }
    node = shutil.which("node")
    if node is None:
        result["peer"] = {"name": "Node.js", "skipped": "node is not installed"}
        return result
    async with _process([node, "-e", PEER]) as told:
        result["peer"] = {"name": "Node.js http, answers 202 and does nothing"} | await _measure(told, min(seconds, 5.0), closed_seconds)
    result["closed_loop_ratio_to_peer"] = round(ours["closed"]["per_second"] / result["peer"]["closed"]["per_second"], 4)
    return result


@asynccontextmanager
async def _process(command: list[str]) -> AsyncIterator[dict[str, Any]]:
    """A server that says on its first line where it listens."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."})
    assert process.stdout is not None
    try:
        yield json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)


async def _measure(told: dict[str, Any], seconds: float, closed_seconds: float) -> dict[str, Any]:
    host, _, port = told["public"].partition(":")
    lanes = [await _Lane.open(host, int(port), told["tokens"][i % len(told["tokens"])], i) for i in range(CONNECTIONS)]
    try:
        for i in range(WARM_UP):
            await lanes[i % CONNECTIONS].send()
        opened = await _open_loop(lanes, int(RATE * seconds))
        return {"open": opened, "closed": await _closed_loop(lanes, closed_seconds)}
    finally:
        for lane in lanes:
            lane.close()


async def _open_loop(lanes: list[_Lane], count: int) -> dict[str, Any]:
    due: asyncio.Queue[float | None] = asyncio.Queue()
    latencies: list[float] = []
    failed = 0

    async def worker(lane: _Lane) -> None:
        nonlocal failed
        while (at := await due.get()) is not None:
            status = await lane.send()
            latencies.append((time.perf_counter() - at) * 1000)
            failed += status != 202

    workers = [asyncio.create_task(worker(lane)) for lane in lanes]
    begin = time.perf_counter()
    for i in range(count):
        at = begin + i / RATE
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        due.put_nowait(at)
    for _ in workers:
        due.put_nowait(None)
    await asyncio.gather(*workers)
    latencies.sort()
    return {
        "orders": count,
        "failed": failed,
        "median_ms": round(statistics.median(latencies), 2),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)], 2),
        "max_ms": round(latencies[-1], 2),
    }


async def _closed_loop(lanes: list[_Lane], seconds: float) -> dict[str, Any]:
    """Every connection sends its next order as soon as it has the answer to the last one."""
    until = time.perf_counter() + seconds
    done = failed = 0

    async def worker(lane: _Lane) -> None:
        nonlocal done, failed
        while time.perf_counter() < until:
            failed += await lane.send() != 202
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(worker(lane) for lane in lanes))
    return {"orders": done, "failed": failed, "per_second": round(done / (time.perf_counter() - begin), 1)}


class _Lane:
    """One keep-alive connection. Hand-written, so that the sender costs next to nothing on a machine that it shares with the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, number: int) -> None:
        self._reader, self._writer, self._token, self._number, self._sent = reader, writer, token, number, 0

    @classmethod
    async def open(cls, host: str, port: int, token: str, number: int) -> _Lane:
        reader, writer = await asyncio.open_connection(host, port)
        return cls(reader, writer, token, number)

    async def send(self) -> int:
        self._sent += 1
        name = f"s{self._number}-{self._sent}"
        body = json.dumps(
            {
                "ctype": "game", "name": name, "flavor": "fabric", "version": "1.21.1",
                "memory_mb": 1024, "cores": 1, "disk_gb": 5, "request_nonce": name,
            }
        ).encode()  # fmt: skip
        head = (
            f"POST /api/servers/create HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length: " in answer:
            await self._reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
        else:  # chunked, as Node.js answers
            while (size := int(await self._reader.readline(), 16)) > 0:
                await self._reader.readexactly(size + 2)
            await self._reader.readline()
        return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        self._writer.close()


async def _serve(directory: Path) -> None:
    """Both listeners over a new database with one large node and as many customers as connections."""
    from flows.api.deps import ApiDeps
    from flows.api.serve import serve
    from flows.bootstrap import router
    from flows.domain.node import Node
    from flows.settings import ApiSettings, NetworkSettings, Settings, VmidSettings
    from flows.state import customers, migrate, nodes, tokens
    from flows.state.customers import PlanLimits
    from flows.state.database import Database
    from tests.support.house import FakeArtifacts, artifact

    url = f"sqlite+aiosqlite:///{directory / 'zlh.db'}"
    await migrate.upgrade(url)
    database = Database(url)
    async with database.write() as tx:
        await customers.put_plan(tx, PlanLimits("bench", 10**6, 10**9, 10**9, 1))
        await nodes.put(tx, Node("pve1", 10**9, 10**9, 64, "local-zfs", "vmbr1", {"fabric": 9001}))
        owners = [await customers.add(tx, f"customer-{i}", "bench") for i in range(CONNECTIONS)]
        plain = [(await tokens.create(tx, customer_id=c.id, role="customer", label="bench"))[1] for c in owners]
    settings = Settings(
        api=ApiSettings(public_bind="127.0.0.1:0", control_bind="127.0.0.1:0", requests_per_minute=10**9),
        vmid=VmidSettings(first=10_000, last=99_999),
        network=NetworkSettings(pool="10.0.0.0/8", gateway="10.0.0.1"),
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def ready(public: str, control: str) -> None:
        print(json.dumps({"public": public, "control": control, "tokens": plain}), flush=True)

    await serve(ApiDeps(database, settings, router(settings), FakeArtifacts([artifact("jar", "fabric", "1.21.1")])), stop, ready)
    await database.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(Path(sys.argv[2])))
    else:
        print(json.dumps(run(), indent=2))
