"""``zlh lab fault TARGET VERB``: every verb reaches its part, and the command's own words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.cli.main import run
from flows.errors import BadInput
from flows.lab import launch
from flows.lab.__main__ import Lab
from flows.lab.config import LabConfig
from flows.lab.deeds import NOWHERE, UNDONE_BY, VERBS, Request, deed
from flows.lab.world import LabAgent, LabContainer


@pytest.mark.parametrize(
    ("target", "verb", "value", "request_"),
    [
        ("agent:10000", "kill", None, Request("/agents/10000/kill")),
        ("agent:10000", "crash", "out_of_memory", Request("/agents/10000/crash", {"reason": "out_of_memory"})),
        ("ct:10000", "stop", None, Request("/containers/10000/stop")),
        ("ct:10000", "lock", "snapshot", Request("/containers/10000/lock", {"lock": "snapshot"})),
        ("node:pve1", "down", None, Request("/nodes/pve1/down")),
        ("dns:lotus", "drop", None, Request("/dns", {"op": "delete", "name": "lotus"})),
        ("dns:lotus", "corrupt", None, Request("/dns", {"op": "replace", "name": "lotus", "rtype": "A", "value": NOWHERE})),
        ("dns:lotus", "duplicate", "2001:db8::6", Request("/dns", {"op": "add", "name": "lotus", "rtype": "AAAA", "value": "2001:db8::6"})),
        ("bridge", "restart", None, Request("/parts/bridge/restart")),
        ("proxmox", "unreachable", None, None),
        ("agent:10000", "hang", None, None),
    ],
)
def test_a_verb_is_one_request(target: str, verb: str, value: str | None, request_: Request | None) -> None:
    assert deed(target, verb, value) == request_


@pytest.mark.parametrize(
    ("target", "verb", "value", "said"),
    [
        ("bridge", "kill", None, "agent:<vmid>"),
        ("agent:10000", "down", None, "node:<name>"),
        ("agent:lotus", "kill", None, "agent:<vmid>"),
        ("ct:", "stop", None, "ct:<vmid>"),
        ("node:", "down", None, "node:<name>"),
        ("ct:10000", "stop", "now", "--value"),
    ],
)
def test_a_verb_of_something_else_is_refused(target: str, verb: str, value: str | None, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        deed(target, verb, value)


@pytest.fixture
async def lab(lab_config: Callable[..., LabConfig], tmp_path: Path) -> AsyncIterator[Lab]:
    (tmp_path / "project" / "playbooks").mkdir(parents=True)
    lab = Lab(lab_config())
    await lab.start()
    yield lab
    await lab.stop()


async def test_every_verb_is_taken_by_its_part(lab: Lab) -> None:
    agent = LabAgent("srv-1", "0.1.0", token="agent-token", prepared=True)
    config = {"hostname": "a", "net0": "name=eth0,bridge=vmbr0,ip=127.20.9.1/16", "memory": 2048}
    lab.world.containers[10001] = LabContainer(10001, "pve1", "running", config=config, agent=agent, started_at=1.0)
    await lab.world.changed(10001)
    names = {"agent:<vmid>": "agent:10001", "ct:<vmid>": "ct:10001", "node:<name>": "node:pve2", "dns:<name>": "dns:lotus", "<part>": "bridge"}
    deeds = [(names[form], verb) for form in ("dns:<name>", "agent:<vmid>", "node:<name>", "<part>", "ct:<vmid>") for verb in VERBS[form]]
    deeds.sort(key=lambda d: d[1] in ("drop", "destroy", "crash"))  # a record must be there first; a container is destroyed last
    async with httpx.AsyncClient(base_url=lab.control.site.url, headers={"Authorization": "Bearer control-token"}, trust_env=False) as client:
        for target, verb in deeds:
            request = deed(target, verb)
            assert request is not None
            answer = await client.request(request.method, request.path, json=dict(request.body))
            if verb == "crash":  # no game was started in it
                assert (answer.status_code, answer.json()["detail"]) == (422, "vmid: nothing runs in 10001")
            else:
                assert answer.status_code == 200, (target, verb, answer.text)
    assert 10001 not in lab.world.containers
    assert set(UNDONE_BY) | set(UNDONE_BY.values()) <= {verb for verbs in VERBS.values() for verb in verbs}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    launch.up(tmp_path / "lab")
    yield tmp_path / "lab"
    launch.down(tmp_path / "lab")


def test_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def zlh(*words: str) -> str:
        assert run(["lab", "fault", *words, "--dir", str(home)]) == 0
        return capsys.readouterr().out

    def faults() -> list[Any]:
        return [fault["id"] for fault in launch.status(home)["faults"]]

    assert zlh("node:pve2", "down").strip() == f"node:pve2: down done; take it back: zlh lab fault node:pve2 up --dir {home}"
    assert json.loads(zlh("node:pve2", "up", "--json")) == {"node": "pve2", "online": True}
    said = zlh("proxmox", "slow")
    assert said.strip().endswith(f"end it: zlh lab fault --clear 1 --dir {home}")
    for target in ("bridge", "dns", "dns"):
        zlh(target, "hang")
    assert zlh("--clear", "1") == "ended 1 faults\n" and faults() == [2, 3, 4]
    assert zlh("--clear", "dns") == "ended 2 faults\n" and faults() == [2]
    assert zlh("--clear") == "ended 1 faults\n" and faults() == []
    assert run(["lab", "fault", "discord", "partial", "--dir", str(home)]) == 2
    assert "discord cannot play partial" in capsys.readouterr().err
