"""A running stack whose provisionings are interrupted: how, and what must not be left behind. For fleets ``sim`` and ``lxc`` alike."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path

from flows.cli.demo import provisioning
from flows.cli.demo.stage import Stage
from flows.clients.supervisor import MARKER
from flows.domain.operation import OperationState


def flow_killed(stage: Stage, run_id: str) -> None:
    assert stage.kill_flow(run_id)


#: Ways to die: the flow run's process group by -9 · the worker by SIGTERM, and its flows with it · both by -9.
WAYS: dict[str, Callable[[Stage, str], None]] = {
    "flow": flow_killed,
    "worker": provisioning.worker_stopped,
    "both": provisioning.both_killed,
}


async def order(stage: Stage, name: str, customer: str = "acme", **changes: object) -> str:
    """A small game server; its operation's id."""
    body = {**provisioning.GAME, "version": await stage.version("jar", "fabric"), "memory_mb": 1024, "name": name, "request_nonce": name}
    return await stage.order(customer, {**body, **changes})


async def over(stage: Stage, operation_id: str, limit_s: float = 120.0) -> None:
    """Waits for its end, which must be a success."""

    async def finished() -> bool:
        return (await stage.operation(operation_id)).finished_at is not None

    await stage.until(f"the end of operation {operation_id}", finished, limit_s)
    operation = await stage.operation(operation_id)
    assert operation.state is OperationState.SUCCEEDED, operation


async def interrupted(stage: Stage, name: str, operation_id: str, way: str, steps: Collection[str], then: Callable[[], None] = lambda: None) -> None:
    """Killed in one of the steps, ``then`` called, taken up again, a success, and nothing left of what was killed."""

    def hit(stage: Stage, run_id: str) -> None:
        WAYS[way](stage, run_id)
        then()

    row = await provisioning.interrupted(stage, f"{way} killed", name, operation_id, hit, steps)
    assert row.failures == []
    assert playbooks_left(stage) == []


async def ordered_about(stage: Stage, name: str, verb: str, customer: str = "acme") -> str:
    """start, stop, restart, delete; the operation's id."""
    server = await stage.server(name)
    assert server is not None
    path = f"/api/servers/{server.id}"
    answer = await (stage.call(customer, "DELETE", path) if verb == "delete" else stage.call(customer, "POST", f"{path}/{verb}"))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["operation"]["id"])


def playbooks_left(stage: Stage) -> list[str]:
    """Processes of any of its plays: those whose directory still stands, and those that name it."""
    scratch, found = stage.settings.ansible.scratch_dir, []
    marks = [f"{MARKER}={name}".encode() for name in os.listdir(scratch)]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environ = (entry / "environ").read_bytes()
                if f"{scratch}/".encode() in environ or any(mark in environ for mark in marks):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
