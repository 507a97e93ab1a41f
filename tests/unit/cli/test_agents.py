"""``zlh agents unfence`` up to the ssh program, a stand-in here. The real thing is proven on a real container in ``tests/lab``."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from flows.state import host_keys
from flows.state import tables as t
from flows.state.database import Tx

from .conftest import Fleet, Said

KEY = base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + b"k" * 32).decode()
SSH = """#!/bin/sh
printf '%s\\n' "$@" > {0}/argv
for word in "$@"; do case "$word" in UserKnownHostsFile=*) cat "${{word#*=}}" > {0}/known ;; esac; done
echo "{1}" >&2
exit {2}
"""


@pytest.fixture
def ssh(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    (home / "bin").mkdir()
    (home / "id").write_text("key")
    with (home / "zlh.env").open("a") as file:
        file.write(f"ZLH_ANSIBLE__PRIVATE_KEY={home}/id\nZLH_NETWORK__CONTROL_ADDRESSES=10.0.0.1\n")
    monkeypatch.setenv("PATH", f"{home}/bin", prepend=":")

    def ends(says: str, code: int) -> None:
        (home / "bin" / "ssh").write_text(SSH.format(home, says, code))
        (home / "bin" / "ssh").chmod(0o755)

    return ends


def trusted(write: Callable[..., Any], server_id: str) -> None:
    async def put(tx: Tx) -> None:
        await host_keys.put(tx, server_id, "10.0.0.9", {"ssh-ed25519": KEY})

    write(put)


def audited(write: Callable[..., Any]) -> list[tuple[str, str]]:
    async def read(tx: Tx) -> list[tuple[str, str]]:
        rows = await tx.execute(select(t.audit.c.action, t.audit.c.detail).where(t.audit.c.action.like("agent.unfence%")).order_by(t.audit.c.id))
        return [(row.action, row.detail.get("why", "")) for row in rows]

    found: list[tuple[str, str]] = write(read)
    return found


def test_it_removes_what_the_agent_has_seen_over_strict_ssh(
    zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any], ssh: Callable[[str, int], None], home: Path
) -> None:
    ssh("", 0)
    trusted(write, fleet.ids["moss"])
    said = zlh("agents", "unfence", "moss", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out) == {"server": "moss", "unfenced": True}
    argv = (home / "argv").read_text().splitlines()
    assert argv[-4:] == ["root", "--", "10.0.0.9", "rm -f -- /var/lib/zlh-agent/lease /var/lib/zlh-agent/epoch"]
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes", f"IdentityFile={home}/id"} <= set(argv)
    assert (home / "known").read_text() == f"10.0.0.9 ssh-ed25519 {KEY}\n"
    assert audited(write) == [("agent.unfence", "")]


def test_a_failure_is_said_and_audited(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any], ssh: Callable[[str, int], None]) -> None:
    ssh("Host key verification failed.", 255)
    trusted(write, fleet.ids["moss"])
    said = zlh("agents", "unfence", "moss")
    assert said.status == 3 and "Host key verification failed." in said.err
    assert [action for action, _ in audited(write)] == ["agent.unfence", "agent.unfence.failed"]


def test_a_container_that_was_never_trusted_is_not_entered(
    zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any], ssh: Callable[[str, int], None], home: Path
) -> None:
    ssh("", 0)
    said = zlh("agents", "unfence", "moss")
    assert said.status == 1 and "never trusted" in said.err
    assert not (home / "argv").exists() and audited(write) == []
