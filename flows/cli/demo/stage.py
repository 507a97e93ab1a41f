"""What the demo's acts stand on: the running stack, the front door, the lab's control API, and the places where evidence lies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sqlalchemy import select

from flows.cli.stack import Stack
from flows.domain.operation import Operation
from flows.domain.server import Server
from flows.errors import AutomationError, DeadlineExceeded, NotFound
from flows.lab import launch
from flows.state import customers, operations, servers, tokens
from flows.state import tables as t
from flows.state.database import Database

T = TypeVar("T")


class Stage:
    """One demo's world. ``say`` adds a line to the live view."""

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        self.stack, self.say = stack, say
        self.settings = stack.settings
        self.database = Database(self.settings.database.url.get_secret_value())
        self.lab = launch.load(stack.dir / "lab")
        self.http = httpx.AsyncClient(timeout=15.0)
        self.tokens: dict[str, str] = {}
        self.patience = 3.0 if self.lab.fleet == "lxc" else 1.0  # real containers boot, real playbooks run

    async def close(self) -> None:
        await self.http.aclose()
        await self.database.close()

    # -- the front door ----------------------------------------------------------------------------------------------------------------

    async def customer(self, name: str) -> None:
        """A customer on plan ``pro``, with a token of its own."""
        async with self.database.write() as tx:
            found = await customers.by_name(tx, name) or await customers.add(tx, name, "pro")
            _, self.tokens[name] = await tokens.create(tx, customer_id=found.id, role="customer", label="demo", expires_at=None)

    async def call(self, customer: str, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """A request as that customer would send it."""
        headers = {"Authorization": f"Bearer {self.tokens[customer]}"}
        return await self.http.request(method, f"http://{self.settings.api.public_bind}{path}", json=body, headers=headers)

    async def order(self, customer: str, body: dict[str, Any]) -> str:
        """Orders a server; the operation's id."""
        answer = await self.call(customer, "POST", "/api/servers/create", body)
        if answer.status_code != 202:
            raise AutomationError("the front door", why=f"{answer.status_code}: {answer.text[:300]}")
        return answer.headers["Location"].rsplit("/", 1)[-1]

    async def version(self, kind: str, name: str) -> str:
        """The newest version of an artifact that the lab's catalog promotes."""
        answer = await self.http.get(f"{self.settings.artifacts.url}/catalog.json")
        found = [a["version"] for a in answer.json()["artifacts"] if (a["kind"], a["name"], a["state"]) == (kind, name, "promoted")]
        return str(max(found))

    # -- the lab -----------------------------------------------------------------------------------------------------------------------

    async def lab_call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = await self.http.request(
            method, self.lab.control_url + path, json=body, headers={"Authorization": f"Bearer {self.lab.control_token}"}
        )
        if answer.is_error:
            raise AutomationError(f"lab: {method} {path}", why=answer.text[:300])
        return answer.json() if answer.content else None

    async def fault(self, target: str, mode: str, **options: Any) -> int:
        """Arms a fault; its id."""
        return int((await self.lab_call("POST", "/faults", {"target": target, "mode": mode, **options}))["id"])

    async def clear(self, *fault_ids: int) -> None:
        for fault_id in fault_ids:
            await self.lab_call("DELETE", f"/faults?id={fault_id}")

    async def messages(self, channel: str, since: float, *words: str) -> list[str]:
        """What Discord received in a channel since then (Unix seconds) that holds all the words."""
        state = await self.lab_call("GET", "/state")
        found = state["parts"]["discord"]["channels"].get(channel, [])
        return [m["content"] for m in found if m["time"] >= since and all(word in m["content"] for word in words)]

    async def channels(self, since: float, *words: str, among: Sequence[str] = ()) -> tuple[str, ...]:
        """Channels that received such a message."""
        names = among or ("alerts-critical", "alerts-repairs", "alerts-provisioning", "system-health")
        return tuple([name for name in names if await self.messages(name, since, *words)])

    # -- evidence ----------------------------------------------------------------------------------------------------------------------

    async def operation(self, operation_id: str) -> Operation:
        async with self.database.read() as tx:
            found = await operations.get(tx, operation_id)
        assert found is not None
        return found

    async def server(self, name: str) -> Server:
        """Raises NotFound where its creation was undone."""
        async with self.database.read() as tx:
            found = await servers.by_name(tx, name)
        if found is None:
            raise NotFound(f"server {name}", why="its creation failed", remedy=f"see the rows above and {self.stack.dir / 'logs'}")
        return found

    async def rows(self, statement: Any) -> list[Any]:
        async with self.database.read() as tx:
            return list(await tx.execute(statement))

    async def episode(self, check: str, words: str, since_ms: int) -> Any | None:
        """The newest episode of a check whose subject or summary holds the words, opened since."""
        e = t.episodes.c
        rows = await self.rows(select(t.episodes).where(e.check == check, e.opened_at >= since_ms).order_by(e.opened_at.desc()))
        return next((r for r in rows if words in r.subject or words in r.summary or words == r.server_id), None)

    async def repair(self, action: str, since_ms: int, **match: str) -> Any | None:
        """The first repair of this action with intent since then, matching columns."""
        r = t.repairs.c
        statement = select(t.repairs).where(r.action == action, r.intent_at >= since_ms).order_by(r.intent_at)
        for column, value in match.items():
            statement = statement.where(r[column] == value)
        found = await self.rows(statement)
        return found[0] if found else None

    async def until(self, what: str, look: Callable[[], Awaitable[T | None]], limit_s: float) -> T:
        """Polls until ``look`` returns something true. Raises DeadlineExceeded naming what was waited for."""
        limit_s *= self.patience
        end = time.monotonic() + limit_s
        while True:
            found = await look()
            if found:
                return found
            if time.monotonic() >= end:
                raise DeadlineExceeded(what, why=f"not seen in {limit_s:.0f} s")
            await asyncio.sleep(0.25)

    # -- processes ---------------------------------------------------------------------------------------------------------------------

    def flow_process(self, run_id: str) -> int | None:
        """The process of a flow run, found by its environment."""
        needle = run_id.encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environ = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"FLOW_RUN_ID=" + needle in environ and b"prefect" in command:
                return int(entry.name)
        return None

    def kill_flow(self, run_id: str) -> bool:
        """SIGKILL to the flow run's process group; to the process alone where it shares its group with the worker."""
        pid = self.flow_process(run_id)
        if pid is None:
            return False
        worker = self.stack.children["prefect-worker"].process
        group = os.getpgid(pid)
        if worker is not None and group == os.getpgid(worker.pid):
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(group, signal.SIGKILL)
        return True
