"""Both listeners as a real server on loopback: they begin together, end together, and finish what they began."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from flows.api.deps import ApiDeps
from flows.api.serve import serve
from flows.errors import MisconfiguredSetting
from tests.support.house import CONTROL_TOKEN, House, new_settings, order


@pytest.fixture
def settings() -> Any:
    return new_settings(public_bind="127.0.0.1:0", control_bind="127.0.0.1:0")


class Running:
    """The server in a task of its own."""

    def __init__(self, house: House) -> None:
        self.stop = asyncio.Event()
        self._ready: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(serve(house.deps, self.stop, lambda *at: self._ready.set_result(at)))

    async def addresses(self) -> tuple[str, str]:
        return await asyncio.wait_for(self._ready, 10)

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 15)


async def test_two_listeners_each_with_its_own_routes(house: House) -> None:
    running = Running(house)
    public, control = await running.addresses()
    async with httpx.AsyncClient(trust_env=False) as client:
        created = await client.post(f"http://{public}/api/servers/create", json=order(), headers=house.alice.headers())
        backends = await client.get(f"http://{control}/internal/proxy/backends", headers={"Authorization": f"Bearer {CONTROL_TOKEN}"})
        crossed = [
            await client.get(f"http://{public}/internal/proxy/backends", headers={"Authorization": f"Bearer {CONTROL_TOKEN}"}),
            await client.get(f"http://{control}/healthz"),
        ]
    assert (created.status_code, backends.status_code, [c.status_code for c in crossed]) == (202, 200, [404, 404])
    assert "server" not in created.headers
    await running.end()


async def test_a_stop_lets_requests_under_way_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    real = house.deps.database.apply

    async def slow(work: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await real(work)

    monkeypatch.setattr(house.deps.database, "apply", slow)
    running = Running(house)
    public, _ = await running.addresses()
    async with httpx.AsyncClient(trust_env=False) as client:
        asked = asyncio.create_task(client.post(f"http://{public}/api/servers/create", json=order(), headers=house.alice.headers()))
        await asyncio.wait_for(entered.wait(), 10)
        running.stop.set()
        await asyncio.sleep(0)
        assert not running.task.done()
        go_on.set()
        assert (await asyncio.wait_for(asked, 10)).status_code == 202
        await running.end()
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://{public}/healthz")


async def test_a_stop_before_the_start_is_a_stop(house: House) -> None:
    stop = asyncio.Event()
    stop.set()
    await asyncio.wait_for(serve(house.deps, stop), 15)


@pytest.mark.parametrize("field", ["public_bind", "control_bind"])
async def test_an_address_in_use_is_named_with_its_setting(house: House, field: str) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    try:
        binds = {"public_bind": "127.0.0.1:0", "control_bind": "127.0.0.1:0"} | {field: f"127.0.0.1:{taken.getsockname()[1]}"}
        with pytest.raises(MisconfiguredSetting, match=f"ZLH_API__{field.upper()}"):
            await serve(ApiDeps(house.database, new_settings(**binds), house.deps.route, house.catalog), asyncio.Event())
    finally:
        taken.close()


@pytest.mark.parametrize("where", ["nowhere", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "192.0.2.1:80"])
async def test_nonsense_is_named_with_its_setting(house: House, where: str) -> None:
    deps = ApiDeps(house.database, new_settings(public_bind=where), house.deps.route, house.catalog)
    with pytest.raises(MisconfiguredSetting, match="ZLH_API__PUBLIC_BIND"):
        await serve(deps, asyncio.Event())
