"""The lab's control API over HTTP: authentication, inspection, faults, and what it does to the parts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from flows.errors import BadInput
from flows.lab.__main__ import Lab
from flows.lab.config import LabConfig, dump, load
from flows.lab.faults import MODES, Mode
from flows.lab.part import Manipulable, Part, PartError, Restartable, Routed
from flows.lab.world import LabAgent, LabContainer

PARTS = ("proxmox", "agents", "bridge", "dns", "discord", "artifacts", "runner")


class Fake:
    """A part that remembers what was asked of it."""

    name = "bridge"
    endpoints: Mapping[str, str] = {"url": "http://127.0.0.1:1"}

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.restarts = 0

    async def stop(self) -> None: ...

    async def restart(self) -> None:
        self.restarts += 1

    def inspect(self) -> dict[str, Any]:
        return {"asked": len(self.asked)}

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if op == "kill" and arguments.get("how") == "softly":
            raise PartError("how: softly is not a way")
        self.asked.append((op, dict(arguments)))
        return {"op": op}


class Mounted(Fake):
    """One that is reached through the control listener."""

    def routes(self) -> Sequence[web.RouteDef]:
        async def hello(request: web.Request) -> web.Response:
            return web.json_response({"hello": True})

        return [web.get("/hello", hello)]


@pytest.fixture
async def lab(lab_config: Callable[..., LabConfig]) -> AsyncIterator[Lab]:
    """Proxmox is real, every other part a fake."""
    lab = Lab(lab_config().model_copy(update={"parts": ("proxmox",)}))
    lab.parts.update({name: Fake() for name in ("bridge", "dns", "agents")} | {"runner": Mounted()})
    await lab.start()
    yield lab
    await lab.stop()


@pytest.fixture
async def call(lab: Lab) -> AsyncIterator[Callable[..., Awaitable[httpx.Response]]]:
    async with httpx.AsyncClient(base_url=lab.control.site.url, headers={"Authorization": "Bearer control-token"}, trust_env=False) as client:
        yield client.request


def fake(lab: Lab, name: str) -> Fake:
    part = lab.parts[name]
    assert isinstance(part, Fake)
    return part


async def test_nobody_gets_in_without_the_token(lab: Lab) -> None:
    async with httpx.AsyncClient(base_url=lab.control.site.url, trust_env=False) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for method, path in (("GET", "/state"), ("POST", "/faults"), ("GET", "/hello"), ("GET", "/nothing")):
                assert (await client.request(method, path, headers=headers)).status_code == 401


async def test_state_shows_everything_but_secrets(lab: Lab, call: Any) -> None:
    agent = LabAgent("srv-1", "1.0", token="s3cret-token", key="s3cret-key", certificate="PEM")
    agent.calls.append({"path": "/game/start", "lease": 7})
    lab.world.containers[10001] = LabContainer(10001, "pve1", "running", config={"net0": "name=eth0,ip=127.20.0.5/16"}, agent=agent)
    answer = await call("GET", "/state")
    state = answer.json()
    assert set(state["parts"]) == {"proxmox", "bridge", "dns", "agents", "runner"}
    assert state["parts"]["proxmox"]["endpoints"]["url"].startswith("https://127.0.0.1:")
    shown = state["containers"]["10001"]
    assert (shown["status"], shown["address"], shown["template"], shown["agent"]) == ("running", "127.20.0.5", False, True)
    assert state["containers"]["9000"]["template"] is True
    assert state["agents"]["10001"]["calls"] == [{"path": "/game/start", "lease": 7}]
    assert state["agents"]["10001"]["tls"] is True
    assert "s3cret" not in answer.text and "control-token" not in answer.text


async def test_faults_are_armed_listed_and_cleared(lab: Lab, call: Any) -> None:
    first = await call("POST", "/faults", json={"target": "proxmox", "mode": "slow", "seconds": 0.5, "for_s": 60})
    assert first.status_code == 201 and first.json()["for_s"] <= 60
    second = await call("POST", "/faults", json={"target": "agent:10001", "mode": "error", "status": 503, "count": 2, "call": "GET /status"})
    assert second.status_code == 201
    listed = (await call("GET", "/faults")).json()["faults"]
    assert [(f["target"], f["mode"], f["call"], f["count"]) for f in listed] == [
        ("proxmox", "slow", "*", None),
        ("agent:10001", "error", "GET /status", 2),
    ]
    assert lab.faults.hit("agent:10001", "GET /status") is not None
    assert (await call("GET", "/state")).json()["faults"][1]["hits"] == 1


async def test_a_wrong_fault_names_its_field(call: Any) -> None:
    for body, field in (
        ({"target": "proxmux", "mode": "slow"}, "target"),
        ({"target": "discord", "mode": "slow"}, "target"),
        ({"target": "proxmox", "mode": "sloow"}, "mode"),
        ({"target": "proxmox", "mode": "error", "status": 42}, "status"),
        ({"target": "proxmox", "mode": "error", "count": 0}, "count"),
        ({"target": "proxmox", "mode": "error", "coutn": 1}, "coutn"),
        ({"mode": "error"}, "target"),
        ({"target": "dns", "mode": "rights_lost"}, "mode"),
        ({"target": "bridge", "mode": "fail_task"}, "mode"),
        ({"target": "agent:10001", "mode": "token_expired"}, "mode"),
        ({"target": "runner", "mode": "partial"}, "mode"),
    ):
        answer = await call("POST", "/faults", json=body)
        assert answer.status_code == 422 and answer.json()["field"] == field, body
        assert answer.json()["detail"].startswith(field)
    assert (await call("POST", "/faults", content=b"{")).status_code == 400
    assert (await call("GET", "/faults")).json() == {"faults": []}


async def test_a_fault_that_ran_out_is_not_listed(lab: Lab, call: Any) -> None:
    for target, until in (("proxmox", time.monotonic() - 1), ("bridge", None), ("dns", time.monotonic() + 60)):
        lab.faults.arm(target, Mode.SLOW, until=until)
    assert [f["target"] for f in (await call("GET", "/state")).json()["faults"]] == ["bridge", "dns"]
    lab.faults.arm("proxmox", Mode.SLOW, until=time.monotonic() - 1)
    assert [f["target"] for f in (await call("GET", "/faults")).json()["faults"]] == ["bridge", "dns"]
    lab.faults.arm("proxmox", Mode.SLOW, until=time.monotonic() - 1)
    assert (await call("DELETE", "/faults")).json() == {"cleared": 2}


def test_every_target_plays_what_a_connection_can_do() -> None:
    for modes in MODES.values():
        assert {Mode.UNREACHABLE, Mode.ERROR, Mode.SLOW, Mode.HANG, Mode.LOSE_ANSWER} <= modes
    assert MODES["proxmox"] == set(Mode)


async def test_clearing(call: Any) -> None:
    ids = [(await call("POST", "/faults", json={"target": t, "mode": "slow"})).json()["id"] for t in ("proxmox", "bridge", "dns", "agents", "agents")]
    assert (await call("DELETE", f"/faults/{ids[0]}")).json() == {"cleared": 1}
    assert (await call("DELETE", f"/faults?id={ids[1]}")).json() == {"cleared": 1}
    assert (await call("DELETE", f"/faults?id={ids[1]}")).status_code == 404
    assert (await call("DELETE", "/faults?id=x")).status_code == 422
    assert (await call("DELETE", "/faults?target=agents")).json() == {"cleared": 2}
    assert [f["target"] for f in (await call("GET", "/faults")).json()["faults"]] == ["dns"]
    assert (await call("DELETE", "/faults")).json() == {"cleared": 1}


async def test_containers_and_nodes(lab: Lab, call: Any) -> None:
    lab.world.containers[10001] = LabContainer(10001, "pve1", config={"hostname": "a"})
    assert (await call("POST", "/containers/10001/start")).json()["status"] == "running"
    assert (await call("POST", "/containers/10001/lock", json={"lock": "snapshot"})).json()["lock"] == "snapshot"
    assert (await call("POST", "/containers/10001/lock", json={"lock": "mine"})).status_code == 422
    assert (await call("POST", "/containers/10001/unlock")).json()["lock"] is None
    assert (await call("POST", "/containers/10001/stop")).json()["status"] == "stopped"
    tasks = (await call("GET", "/state")).json()["parts"]["proxmox"]["tasks"]
    assert [(t["type"], t["user"]) for t in tasks] == [("vzstop", "root@pam"), ("vzstart", "root@pam")]
    assert (await call("POST", "/containers/10001/destroy")).status_code == 200
    assert 10001 not in lab.world.containers
    assert (await call("POST", "/containers/10001/stop")).status_code == 404
    assert (await call("POST", "/containers/9000/explode")).status_code == 404
    assert (await call("POST", "/nodes/pve2/down")).json() == {"node": "pve2", "online": False}
    assert lab.world.nodes["pve2"].online is False
    assert (await call("POST", "/nodes/pve2/up")).json()["online"] is True
    assert (await call("POST", "/nodes/pve7/down")).status_code == 422


async def test_parts_are_asked_in_their_own_words(lab: Lab, call: Any) -> None:
    assert (await call("POST", "/agents/10001/kill")).status_code == 404, "no such container"
    lab.world.containers[10001] = LabContainer(10001, "pve1", agent=LabAgent("srv-1", "1.0", "t"))
    assert (await call("POST", "/agents/10001/kill")).json() == {"op": "kill"}
    assert fake(lab, "agents").asked == [("kill", {"vmid": 10001})]
    refused = await call("POST", "/agents/10001/kill", json={"how": "softly"})
    assert (refused.status_code, refused.json()["detail"]) == (422, "how: softly is not a way")
    await call("POST", "/dns", json={"op": "replace", "name": "a.play.example", "rtype": "A", "value": "192.0.2.1"})
    assert fake(lab, "dns").asked == [("replace", {"name": "a.play.example", "rtype": "A", "value": "192.0.2.1"})]
    assert (await call("POST", "/dns", json={"op": "smudge", "name": "a"})).json()["field"] == "op"
    await call("POST", "/bridge/register", json={"name": "a", "address": "127.20.0.9"})
    assert fake(lab, "bridge").asked == [("register", {"name": "a", "address": "127.20.0.9", "port": 25565})]
    assert (await call("POST", "/bridge/register", json={"name": "a", "address": "x", "port": 0})).json()["field"] == "port"
    assert (await call("POST", "/parts/bridge/restart")).json()["restarted"] == "bridge"
    assert fake(lab, "bridge").restarts == 1
    assert (await call("POST", "/parts/nothing/restart")).status_code == 404
    assert (await call("GET", "/hello")).json() == {"hello": True}, "a routed part is mounted"


async def test_every_real_part_keeps_the_promises(lab_config: Callable[..., LabConfig], tmp_path: Path) -> None:
    (tmp_path / "project" / "playbooks").mkdir(parents=True)
    lab = Lab(lab_config())
    await lab.start()
    try:
        assert tuple(lab.parts) == PARTS
        for name, part in lab.parts.items():
            assert isinstance(part, Part) and part.name == name
            assert part.endpoints and all(isinstance(v, str) for v in part.endpoints.values())
        kinds = {name: (isinstance(p, Restartable), isinstance(p, Manipulable), isinstance(p, Routed)) for name, p in lab.parts.items()}
        assert kinds["bridge"][:2] == kinds["dns"][:2] == kinds["agents"][:2] == kinds["proxmox"][:2] == (True, True)
        assert kinds["runner"][2] is True
        async with httpx.AsyncClient(base_url=lab.control.site.url, headers={"Authorization": "Bearer control-token"}, trust_env=False) as client:
            assert set((await client.get("/state")).json()["parts"]) == set(PARTS)
            answer = await client.post("/dns", json={"op": "add", "name": "x.play.example", "rtype": "A", "value": "192.0.2.1"})
            assert answer.status_code == 200
            assert (await client.post("/bridge/register", json={"name": "x", "address": "127.20.0.9"})).json() == {"servers": ["x"]}
    finally:
        await lab.stop()
    await lab.stop()


def test_configuration(tmp_path: Path, lab_config: Callable[..., LabConfig]) -> None:
    file = tmp_path / "c.json"
    file.write_text(dump(lab_config()))
    assert load(file) == lab_config()
    minimal = '{"state_file": "s", "control": {"token": "a"}, "proxmox": {"ca_dir": "ca"}, "bridge": {"token": "b"}, "dns": {"tsig_secret": "eA=="}'
    file.write_text(minimal + "}")
    assert load(file).agents.port == 18_888
    for text, field in (
        (minimal, "configuration"),
        (minimal + ', "colour": 1}', "colour"),
        (minimal.replace('"ca"', '"ca", "bind": "0.0.0.0:1"') + "}", "proxmox.bind"),
        (minimal.replace('"ca"', '"ca", "bind": "127.0.0.1"') + "}", "proxmox.bind"),
        (minimal.replace('"ca"', '"ca", "nodes": [{"name": "a"}]') + "}", "proxmox"),
        (minimal + ', "agents": {"pool": "10.0.0.0/8"}}', "agents.pool"),
        (minimal + ', "agents": {"pool": "::/64"}}', "agents.pool"),
    ):
        file.write_text(text)
        with pytest.raises(BadInput) as caught:
            load(file)
        assert caught.value.field == field
    with pytest.raises(BadInput):
        load(tmp_path / "none.json")
