"""Who connects and does not ask is sent away in time; who asks is not."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from zlh_agent import serving
from zlh_agent.__main__ import _serving
from zlh_agent.config import Config

REQUEST = b"POST / HTTP/1.1\r\nHost: agent\r\nContent-Length: 4\r\n\r\nbody"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUEST_S", "HANDSHAKE_S", "GOODBYE_S"):
        monkeypatch.setattr(serving, name, 0.3)


@pytest.fixture
def until(waits: Any) -> Any:
    return waits[0]


@asynccontextmanager
async def served(config: Config, until: Any) -> AsyncIterator[None]:
    async def slow(request: Request) -> Response:
        await request.body()
        await asyncio.sleep(0.5)  # longer than a request may take to come
        return PlainTextResponse("done")

    server = uvicorn.Server(_serving(config, Starlette(routes=[Route("/", slow, methods=["POST"])])))
    thread = threading.Thread(target=server.run)  # in the loop that it chooses
    thread.start()
    try:
        await until(lambda: server.started)
        yield
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)


@pytest.fixture
def config(port: int, tmp_path: Path) -> Config:
    return Config("srv-1", "game", "127.0.0.1", "t" * 43, port=port, state_dir=tmp_path)


async def closes(reader: asyncio.StreamReader) -> bytes:
    """What came until the end."""
    async with asyncio.timeout(4):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("sent", [b"", REQUEST[:20], REQUEST[:-2]], ids=["nothing", "half a header", "half a body"])
async def test_what_is_no_whole_request_in_time_is_closed(config: Config, until: Any, sent: bytes) -> None:
    async with served(config, until):
        reader, writer = await asyncio.open_connection(config.bind, config.port)
        writer.write(sent)
        assert await closes(reader) == b""
        writer.close()


async def test_a_trickle_prolongs_nothing(config: Config, until: Any) -> None:
    async with served(config, until):
        reader, writer = await asyncio.open_connection(config.bind, config.port)
        ending = asyncio.create_task(closes(reader))
        began = time.monotonic()
        while not ending.done():
            assert time.monotonic() < began + 4
            writer.write(b"P")
            await asyncio.sleep(0.1)
        writer.close()


async def test_a_request_may_take_its_time_and_the_next_has_its_own_limit(config: Config, until: Any) -> None:
    async with served(config, until):
        reader, writer = await asyncio.open_connection(config.bind, config.port)
        writer.write(REQUEST + REQUEST)  # pipelined
        async with asyncio.timeout(4):
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
        writer.write(REQUEST[:20])  # ends the pause that HTTP allows, and begins nothing
        assert await closes(reader) == b""
        writer.close()


async def test_who_does_not_begin_tls_is_closed(config: Config, until: Any, tmp_path: Path) -> None:
    cert, key = tmp_path / "crt", tmp_path / "key"
    subject = ["-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-out", str(cert)]
    await asyncio.to_thread(subprocess.run, [*made, *subject], check=True, capture_output=True)
    async with served(replace(config, certificate=cert, key=key), until):
        reader, writer = await asyncio.open_connection(config.bind, config.port)
        assert await closes(reader) == b""
        writer.close()
        trusted = ssl.create_default_context(cafile=str(cert))
        reader, writer = await asyncio.open_connection(config.bind, config.port, ssl=trusted)
        writer.write(REQUEST)
        async with asyncio.timeout(4):
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
        writer.write(REQUEST[:20])
        assert await closes(reader) == b""
        writer.close()
