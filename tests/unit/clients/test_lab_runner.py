"""The lab runner against a peer that streams, breaks off, dawdles and refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from flows.clients.lab_runner import LabRunner
from flows.domain.ports import Play
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.errors import AmbiguousEffect, BadAnswer, BadInput, DeadlineExceeded, MisconfiguredSetting, Unauthorized, Unreachable
from flows.settings import AnsibleSettings

END = {"event": "end", "ok": True, "changed": True, "unreachable": False, "facts": {"host_keys": {"ssh-ed25519": "k"}}, "tail": "", "failed_task": ""}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def server() -> Server:
    return Server(
        id="s1", customer_id="c1", name="alpha", ctype=ContainerType.GAME, flavor="fabric", version="1.21.4", memory_mb=2048, cores=2,
        disk_gb=10, node="pve1", storage="local", bridge="vmbr0", template_vmid=9000, vmid=10001, address="127.20.0.11",
        state=ServerState.CREATING, desired=Desired.RUNNING, desired_by="customer", edge=Edge.WITHDRAWN, token_version=1, created_at=0,
    )  # fmt: skip


def play(timeout_s: float = 5.0) -> Play:
    return Play("bootstrap.yml", server(), {"base_authorized_key": "ssh-ed25519 A"}, {"zlh_agent_token": "geheim"}, timeout_s)


class Peer:
    """A lab whose answer is the test's handler."""

    def __init__(self) -> None:
        self.orders: list[Any] = []
        self.tokens: list[str] = []
        self.gone = asyncio.Event()
        self.url = ""
        self.lines: list[bytes] = []
        self.after: Callable[[], Awaitable[None]] | None = None
        self.status = 200

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.orders.append(await request.json())
        self.tokens.append(request.headers["Authorization"])
        if self.status != 200:
            return web.json_response({"detail": "no playbook of that name"}, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            for line in self.lines:
                await response.write(line)
            if self.after is not None:
                await self.after()
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise
        return response


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    app = web.Application()
    app.router.add_post("/playbooks", peer.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    peer.url = f"http://{host}:{port}"
    yield peer
    await runner.cleanup()


@pytest.fixture
def lab(peer: Peer) -> LabRunner:
    return LabRunner(AnsibleSettings(runner="lab", lab_url=peer.url, lab_token=SecretStr("control")))


def encode(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(event).encode() + b"\n" for event in events]


async def test_streams_tasks_and_returns_the_result(lab: LabRunner, peer: Peer) -> None:
    whole = b"".join(encode({"event": "task", "task": "install keys"}, {"event": "task", "task": "read host key"}, END))
    peer.lines = [whole[:20], whole[20:90], whole[90:]]  # lines do not respect chunks
    told: list[str] = []
    result = await lab.run(play(), told.append)
    assert result.ok
    assert result.changed
    assert result.facts == {"host_keys": {"ssh-ed25519": "k"}}
    assert told == ["TASK install keys", "TASK read host key"]
    assert peer.tokens == ["Bearer control"]
    assert peer.orders[0]["server"] == {
        "id": "s1", "name": "alpha", "ctype": "game", "vmid": 10001, "address": "127.20.0.11", "hostname": "zlh-game-10001"
    }  # fmt: skip
    assert peer.orders[0]["secrets"] == {"zlh_agent_token": "geheim"}


async def test_a_failed_play_is_a_result(lab: LabRunner, peer: Peer) -> None:
    peer.lines = encode({**END, "ok": False, "unreachable": True, "tail": "no route", "failed_task": "ping"})
    result = await lab.run(play())
    assert (result.ok, result.unreachable, result.tail, result.failed_task) == (False, True, "no route", "ping")


async def test_a_stream_without_its_end_is_ambiguous(lab: LabRunner, peer: Peer) -> None:
    peer.lines = encode({"event": "task", "task": "install keys"})
    with pytest.raises(AmbiguousEffect):
        await lab.run(play())


async def test_a_broken_connection_is_ambiguous(lab: LabRunner, peer: Peer) -> None:
    async def cut() -> None:
        raise ConnectionResetError

    peer.lines = encode({"event": "task", "task": "install keys"})
    peer.after = cut
    with pytest.raises(AmbiguousEffect):
        await lab.run(play())


async def test_a_play_ends_at_its_deadline_and_the_lab_notices(lab: LabRunner, peer: Peer) -> None:
    peer.after = lambda: asyncio.sleep(30)
    with pytest.raises(DeadlineExceeded):
        await lab.run(play(timeout_s=0.3))
    await asyncio.wait_for(peer.gone.wait(), 5)


async def test_cancelling_closes_the_connection(lab: LabRunner, peer: Peer) -> None:
    peer.lines, peer.after = encode({"event": "task", "task": "install keys"}), lambda: asyncio.sleep(30)
    begun = asyncio.Event()
    task = asyncio.create_task(lab.run(play(), lambda _: begun.set()))
    await asyncio.wait_for(begun.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(peer.gone.wait(), 5)


async def test_no_lab_is_unreachable() -> None:
    lab = LabRunner(AnsibleSettings(runner="lab", lab_url="http://127.0.0.1:1"))
    with pytest.raises(Unreachable, match="ZLH_ANSIBLE__LAB_URL"):
        await lab.run(play())


@pytest.mark.parametrize(("status", "error"), [(401, Unauthorized), (422, BadInput), (404, BadInput), (500, Unreachable)])
async def test_refusals(lab: LabRunner, peer: Peer, status: int, error: type[Exception]) -> None:
    peer.status = status
    with pytest.raises(error) as caught:
        await lab.run(play())
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b'{"event":"end","ok":"yes"}\n', b"x" * 300_000])
async def test_rubbish_is_not_believed(lab: LabRunner, peer: Peer, line: bytes) -> None:
    peer.lines = [line]
    with pytest.raises(BadAnswer):
        await lab.run(play())


def test_needs_a_url() -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_ANSIBLE__LAB_URL"):
        LabRunner(AnsibleSettings(runner="lab"))
