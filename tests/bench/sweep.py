"""Asking N agents for their status: our client, a bare asyncio socket loop, and Node.js ``fetch``, at the same concurrency, in one run.

Each agent has its own loopback address; one process answers for all (:mod:`sweep_peer`). Each asking is a process of its own, as a sweep
is, so that no connection, cache or memory outlives it; its own start is not counted. Of several rounds the best counts, taken in turns:
what else the machine does then disturbs all three alike. Our client checks tokens, identity and every field; the other two only read.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from flows.clients.agents import AgentClient
from flows.clients.ca import CertificateAuthority
from flows.domain.known import Known
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.settings import AgentSettings
from tests.bench.sweep_peer import address, server_id

SIZES = (100, 1_000, 10_000)
CONCURRENCY = 256
#: At most this many times a bare loop's time, and at least this many times Node's rate, at the largest size; MB; GETs per second.
MOST_TIMES_BARE, LEAST_TIMES_NODE, MOST_MB, LEAST_RATE = 2.0, 1.5, 300, 2_700
ROOT = Path(__file__).resolve().parents[2]

NODE = """
const [scheme, port, count, width] = process.argv.slice(1);
const base = (127 << 24 >>> 0) + (64 << 16) + 1;
const address = (i) => [24, 16, 8, 0].map((s) => ((base + i) >>> s) & 255).join(".");
let next = 0, good = 0;
async function worker() {
  while (next < +count) {
    const i = next++;
    const answer = await fetch(`${scheme}://${address(i)}:${port}/status`, { headers: { authorization: "Bearer x" } });
    if ((await answer.json()).ready) good++;
  }
}
const began = process.hrtime.bigint();
Promise.all(Array.from({ length: Math.min(+width, +count) }, worker)).then(() => {
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  console.log(JSON.stringify({ seconds, good, peak_mb: process.resourceUsage().maxRSS / 1024 }));
});
"""


def run(sizes: tuple[int, ...] = SIZES, rounds: int = 3) -> dict[str, Any]:
    """Seconds, rates, ratios and peak memory, for plain HTTP and TLS, by fleet size; and whether the targets are met at the largest."""
    askers = ["ours", "bare"] + (["node"] if shutil.which("node") else [])
    with tempfile.TemporaryDirectory() as directory:
        ca_dir = Path(directory) / "ca"
        CertificateAuthority(ca_dir).ensure()
        listeners = [_listener() for _ in range(2)]
        command = [sys.executable, "-m", "tests.bench.sweep_peer", str(ca_dir), str(max(sizes)), *(str(s.fileno()) for s in listeners)]
        peer = subprocess.Popen(command, cwd=ROOT, pass_fds=[s.fileno() for s in listeners], stdout=subprocess.PIPE, text=True)
        try:
            assert peer.stdout is not None and peer.stdout.readline().strip() == "ready"
            result: dict[str, Any] = {"concurrency": CONCURRENCY, "rounds": rounds}
            for scheme, listener in zip(("http", "https"), listeners, strict=True):
                port = listener.getsockname()[1]
                result[scheme] = [_compare(askers, scheme, port, size, ca_dir, rounds if size < SIZES[-1] else min(rounds, 2)) for size in sizes]
        finally:
            peer.kill()
            peer.wait()
            for listener in listeners:
                listener.close()
    result["targets"] = _targets(result)
    return result


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")  # every loopback address, and nothing else
    listener.bind(("0.0.0.0", 0))
    listener.listen(4096)
    return listener


def _compare(askers: list[str], scheme: str, port: int, size: int, ca_dir: Path, rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {asker: [] for asker in askers}
    for _ in range(rounds):
        for asker in askers:
            runs[asker].append(_ask(asker, scheme, port, size, ca_dir))
    row: dict[str, Any] = {"servers": size}
    for asker, measured in runs.items():
        best = min(m["seconds"] for m in measured)
        row[asker] = {"seconds": round(best, 3), "per_s": round(size / best), "peak_mb": round(max(m["peak_mb"] for m in measured))}
    row["times_bare"] = round(row["ours"]["seconds"] / row["bare"]["seconds"], 2)
    row["times_node"] = round(row["node"]["seconds"] / row["ours"]["seconds"], 2) if "node" in row else None
    row["us_per_server"] = round(row["ours"]["seconds"] / size * 1e6)
    return row


def _ask(asker: str, scheme: str, port: int, size: int, ca_dir: Path) -> dict[str, Any]:
    if asker == "node":
        command = ["node", "-e", NODE, "--", scheme, str(port), str(size), str(CONCURRENCY)]
    else:
        command = [sys.executable, "-m", "tests.bench.sweep", asker, scheme, str(port), str(size), str(ca_dir)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NODE_EXTRA_CA_CERTS": str(ca_dir / "ca.pem")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{asker} {scheme} {size}: {done.stderr[-800:]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert answer["good"] == size, f"{asker} {scheme}: {answer['good']} of {size} answered"
    return answer


def _targets(result: dict[str, Any]) -> dict[str, bool]:
    plain, smallest = result["http"][-1], result["http"][0]
    return {
        "within_2x_of_bare_sockets": plain["times_bare"] <= MOST_TIMES_BARE,
        "at_least_1.5x_node": plain["times_node"] is None or plain["times_node"] >= LEAST_TIMES_NODE,
        "flat_cost_per_server": plain["us_per_server"] <= smallest["us_per_server"] * 1.25,
        "memory_below_300_mb": max(plain["ours"]["peak_mb"], result["https"][-1]["ours"]["peak_mb"]) < MOST_MB,
        "at_least_2700_per_s": plain["ours"]["per_s"] >= LEAST_RATE,
    }


# One asking, in a process of its own


async def _ours(scheme: str, port: int, size: int, ca_dir: Path) -> tuple[float, int]:
    fleet = [
        Server(
            id=server_id(i), customer_id="c", name=f"s{i}", ctype=ContainerType.GAME, flavor="fabric", version="1.21", memory_mb=1024, cores=1,
            disk_gb=4, node="pve1", storage="local", bridge="vmbr0", template_vmid=9000, vmid=10_000 + i, address=address(i),
            state=ServerState.ACTIVE, desired=Desired.RUNNING, desired_by="c", edge=Edge.OPEN, token_version=1, created_at=0,
        )
        for i in range(size)
    ]  # fmt: skip
    client = AgentClient(
        AgentSettings(port=port, tls=scheme == "https", ca_dir=ca_dir, master_secret=SecretStr("m" * 48), concurrency=CONCURRENCY, timeout_s=20)
    )
    began = time.perf_counter()
    results = await client.probe(fleet, within_s=120)
    took = time.perf_counter() - began
    await client.close()
    return took, sum(isinstance(r, Known) for r in results.values())


async def _bare(scheme: str, port: int, size: int, ca_dir: Path) -> tuple[float, int]:
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context(cafile=str(ca_dir / "ca.pem")) if scheme == "https" else None
    todo = iter(range(size))
    good = 0

    async def plain(host: str, request: bytes) -> bytes:
        with socket.socket() as s:
            s.setblocking(False)
            await loop.sock_connect(s, (host, port))
            await loop.sock_sendall(s, request)
            parts = []
            while part := await loop.sock_recv(s, 65_536):
                parts.append(part)
        return b"".join(parts)

    async def secure(host: str, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.write(request)
        answer = await reader.read(-1)
        writer.close()
        return answer

    get: Callable[[str, bytes], Awaitable[bytes]] = secure if context else plain

    async def worker() -> None:
        nonlocal good
        for index in todo:
            host = address(index)
            answer = await get(host, b"GET /status HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n" % host.encode())
            good += bool(json.loads(answer.partition(b"\r\n\r\n")[2])["ready"])

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(min(CONCURRENCY, size))))
    return time.perf_counter() - began, good


def _main(asker: str, scheme: str, port: str, size: str, ca_dir: str) -> None:
    took, good = asyncio.run((_ours if asker == "ours" else _bare)(scheme, int(port), int(size), Path(ca_dir)))
    print(json.dumps({"seconds": took, "good": good, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    if len(sys.argv) == 6:
        _main(*sys.argv[1:])
    else:
        print(json.dumps(run(), indent=2))
