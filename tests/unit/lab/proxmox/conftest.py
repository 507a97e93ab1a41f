"""The face in this process, and real clients for it: proxmoxer in threads, requests for what proxmoxer hides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import requests
from proxmoxer import ProxmoxAPI, ResourceException

from flows.lab import proxmox
from flows.lab.config import DEFAULT_RIGHTS, LabConfig
from flows.lab.faults import Faults
from flows.lab.world import World

SECRET, PASSWORD = "0f8d-secret", "a-password"
TIMINGS = {
    "start_s": 0.03,
    "stop_s": 0.03,
    "shutdown_s": 0.05,
    "destroy_s": 0.03,
    "snapshot_s": 0.03,
    "backup_s": 0.05,
    "refuse_s": 0.02,
    "lock_wait_s": 0.2,
    "storage_lock_wait_s": 0.05,
    "proxy_timeout_s": 0.02,
}
NET0 = "name=eth0,bridge=vmbr0,ip=127.20.0.11/16,gw=127.20.0.1"


#: Every client of the test that runs, so that its connection can be ended.
MADE: list[Api] = []


class Api:
    """proxmoxer as one caller. Paths as in the API's documentation; a refusal is a ResourceException."""

    def __init__(self, part: proxmox.Proxmox, **credentials: Any) -> None:
        self.ends = part.endpoints
        self.make = lambda: ProxmoxAPI(self.ends["address"], verify_ssl=self.ends["ca_file"], timeout=10, **credentials)
        self.client: Any = None
        MADE.append(self)

    def close(self) -> None:
        """proxmoxer keeps its connection open and offers no way to end it."""
        if self.client is not None:
            self.client._store["session"].close()
            self.client = None

    async def call(self, method: str, path: str, **params: Any) -> Any:
        def go() -> Any:
            if self.client is None:
                self.client = self.make()
            return getattr(self.client(path), method)(**params)

        return await asyncio.to_thread(go)

    async def get(self, path: str, **params: Any) -> Any:
        return await self.call("get", path, **params)

    async def post(self, path: str, **params: Any) -> Any:
        return await self.call("post", path, **params)

    async def put(self, path: str, **params: Any) -> Any:
        return await self.call("put", path, **params)

    async def delete(self, path: str, **params: Any) -> Any:
        return await self.call("delete", path, **params)

    async def end(self, upid: str) -> str:
        """The exit status of a task, when it has one."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            status = await self.get(f"nodes/{upid.split(':')[1]}/tasks/{upid}/status")
            if status["status"] == "stopped":
                return str(status["exitstatus"])
            await asyncio.sleep(0.01)
        raise AssertionError(f"{upid} still runs")

    async def done(self, method: str, path: str, **params: Any) -> str:
        return await self.end(await self.call(method, path, **params))

    async def refused(self, method: str, path: str, **params: Any) -> ResourceException:
        with pytest.raises(ResourceException) as caught:
            await self.call(method, path, **params)
        return caught.value

    async def clone(self, newid: int, source: int = 9000, node: str = "pve1", **params: Any) -> str:
        return str(await self.post(f"nodes/{node}/lxc/{source}/clone", newid=newid, full=1, **params))

    async def ready(self, vmid: int = 10000, *, running: bool = False) -> str:
        """A finished clone, by its API path."""
        assert await self.end(await self.clone(vmid, hostname=f"zlh-game-{vmid}")) == "OK"
        path = f"nodes/pve1/lxc/{vmid}"
        await self.put(f"{path}/config", net0=NET0, tags="zlh")
        if running:
            assert await self.done("post", f"{path}/status/start") == "OK"
        return path


@pytest.fixture
def clone_s() -> float:
    """How long a clone takes; a test that must see one run sets it."""
    return 0.15


@pytest.fixture
def config(lab_config: Callable[..., LabConfig], clone_s: float) -> LabConfig:
    return lab_config(
        proxmox={
            "tokens": [
                {"secret": SECRET},
                {"name": "auditor", "secret": SECRET, "rights": {"/vms": ["VM.Audit"], "/": ["Sys.Audit"]}},
                {"name": "nobody", "secret": SECRET, "rights": {}},
                {"name": "storer", "secret": SECRET, "rights": {"/storage": ["Datastore.Audit", "Datastore.AllocateSpace"]}},
                {"name": "old", "secret": SECRET, "expire": 1},
                {"name": "narrow", "secret": SECRET, "rights": {"/vms/9000": ["VM.Audit", "VM.Clone"], "/": ["Sys.Audit"]}},
                {"name": "noswitch", "secret": SECRET, "rights": {**DEFAULT_RIGHTS, "/sdn": []}},
            ],
            "users": [{"password": PASSWORD}],
            "pools": ["games"],
            "timings": {**TIMINGS, "clone_s": clone_s},
        }
    )


@pytest.fixture
async def face(config: LabConfig, faults: Faults) -> AsyncIterator[proxmox.Proxmox]:
    part = await proxmox.start(config, World(), faults)
    yield part
    while MADE:
        MADE.pop().close()
    await part.stop()


@pytest.fixture
def caller(face: proxmox.Proxmox) -> Callable[[str], Api]:
    """``caller("auditor")``: another token's client."""
    return lambda name: Api(face, user="zlh@pve", token_name=name, token_value=SECRET)


@pytest.fixture
def api(caller: Callable[[str], Api]) -> Api:
    return caller("autopilot")


@pytest.fixture
def person(face: proxmox.Proxmox) -> Api:
    """root@pam with a ticket."""
    return Api(face, user="root@pam", password=PASSWORD)


@pytest.fixture
def raw(face: proxmox.Proxmox) -> Callable[..., Any]:
    """``await raw("GET", "/version", headers=…)``: the bare HTTP answer, with our token unless told otherwise."""

    async def ask(method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("headers", {"Authorization": f"PVEAPIToken=zlh@pve!autopilot={SECRET}"})
        options = {"verify": face.endpoints["ca_file"], "timeout": 10, **options}
        return await asyncio.to_thread(requests.request, method, f"{face.endpoints['url']}/api2/json{path}", **options)

    return ask
