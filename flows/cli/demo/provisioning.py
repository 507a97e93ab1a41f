"""Acts in the middle of a provisioning: the flow killed, the worker stopped, both killed. Nothing may run twice, nothing may be left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import select

from flows.cli.demo.player import ping
from flows.cli.demo.report import Row
from flows.cli.demo.stage import Stage
from flows.domain.operation import OperationState
from flows.state import tables as t

#: Steps in whose middle the run is interrupted: something is behind it, and something before.
MIDDLE = ("start_container", "trust", "deploy_agent", "prepare_workload")
GAME = {"ctype": "game", "flavor": "fabric", "memory_mb": 2048, "cores": 2, "disk_gb": 10}
DEV = {"ctype": "dev", "flavor": "dev", "version": "1", "memory_mb": 2048, "cores": 2, "disk_gb": 10}


async def order_all(stage: Stage) -> dict[str, str]:
    """Two customers, three servers; one of them submitted 20 times at once. Name → operation id."""
    await asyncio.gather(stage.customer("acme"), stage.customer("globex"))
    game = {**GAME, "version": await stage.version("jar", "fabric")}
    ids = {
        "lotus": await stage.order("acme", {**game, "name": "lotus", "request_nonce": "demo-lotus"}),
        "workbench": await stage.order("globex", {**DEV, "name": "workbench", "request_nonce": "demo-workbench"}),
    }
    body = {**game, "name": "fern", "request_nonce": "demo-fern"}
    same = await asyncio.gather(*(stage.order("globex", body) for _ in range(20)))
    ids["fern"] = same[0]
    return ids


async def submitted_twenty_times(stage: Stage, operation_id: str) -> Row:
    """The row about the server that was ordered 20 times."""
    row = Row("one server submitted 20 times at once", seen_s=0.0, why="one operation, one record, one container")
    o, s = t.operations.c, t.servers.c
    orders = await stage.rows(select(o.id).where(o.nonce == "demo-fern"))
    records = await stage.rows(select(s.id).where(s.name == "fern"))
    row.expect([r.id for r in orders] == [operation_id], f"{len(orders)} operations instead of one")
    row.expect(len(records) == 1, f"{len(records)} records instead of one")
    return row


async def interrupted(
    stage: Stage, fault: str, name: str, operation_id: str, hit: Callable[[Stage, str], None], steps: Collection[str] = MIDDLE
) -> Row:
    """Waits for one of ``steps``, interrupts it with ``hit(stage, run id)``, and follows the operation to its end."""
    row = Row(f"{fault} ({name})")
    run_id = await stage.until(f"{name} in the middle of its provisioning", lambda: _middle(stage, operation_id, steps), 150)
    before = {r.step: r.runs for r in await _journal(stage, operation_id) if r.state == "done"}
    stage.say(f"{fault}: {name} after {len(before)} steps")
    began, began_ms = time.time(), int(time.time() * 1000)
    hit(stage, run_id)
    seen = await stage.until(f"{name} found orphaned", lambda: stage.repair("revoke_and_resubmit", began_ms - 1000, operation_id=operation_id), 60)
    row.seen_s = seen.intent_at / 1000 - began
    stage.say(f"{name}: found orphaned after {row.seen_s:.0f} s, taken up again")
    await stage.until(f"{name} active", lambda: _over(stage, operation_id), 120)
    row.healed_s = time.time() - began
    operation = await stage.operation(operation_id)
    row.expect(operation.state is OperationState.SUCCEEDED, f"the operation ended as {operation.state}")
    again = {r.step for r in await _journal(stage, operation_id) if r.step in before and r.runs != before[r.step]}
    row.expect(not again, f"completed steps ran again: {', '.join(sorted(again))}")
    row.channels = await _alerts(stage, began, name)
    row.expect("alerts-provisioning" in row.channels, "no message in alerts-provisioning")
    return row


def flow_killed(stage: Stage, run_id: str) -> None:
    stage.kill_flow(run_id)


def worker_stopped(stage: Stage, run_id: str) -> None:
    """SIGTERM ends the worker and, with it, its flows at once; a service manager starts it again."""
    worker = stage.stack.children["prefect-worker"].process
    assert worker is not None
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(30)
    stage.stack.start_worker()


def both_killed(stage: Stage, run_id: str) -> None:
    worker = stage.stack.children["prefect-worker"].process
    assert worker is not None
    pid = stage.flow_process(run_id)
    os.kill(worker.pid, signal.SIGKILL)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    worker.wait(30)
    stage.stack.start_worker()


async def player_arrives(stage: Stage, name: str) -> Row:
    """Server List Ping from outside, as a player's client sends it: by the server's host name, through the proxy."""
    row = Row(f"a player's client looks for {name}", seen_s=0.0, why="it reaches the game through the proxy, by name")
    proxy = stage.settings.proxy
    try:
        status = await ping(proxy.player_address, proxy.player_port, f"{name}.{stage.settings.dns.zone}")
        row.expect("version" in status, f"it answered {status}")
    except (OSError, ValueError) as error:
        row.failures.append(f"no answer: {error}")
    return row


async def _middle(stage: Stage, operation_id: str, steps: Collection[str]) -> str | None:
    operation = await stage.operation(operation_id)
    if operation.state is not OperationState.RUNNING or operation.step not in steps:
        return None
    a = t.attempts.c
    rows = await stage.rows(select(a.run_id).where(a.operation_id == operation_id, a.attempt == operation.attempt))
    return str(rows[0].run_id) if rows and rows[0].run_id and stage.flow_process(str(rows[0].run_id)) else None


async def _over(stage: Stage, operation_id: str) -> bool:
    return (await stage.operation(operation_id)).finished_at is not None


async def _journal(stage: Stage, operation_id: str) -> list[Any]:
    j = t.journal.c
    return await stage.rows(select(j.step, j.state, j.runs).where(j.operation_id == operation_id, j.direction == "do"))


async def _alerts(stage: Stage, since: float, name: str) -> tuple[str, ...]:
    """Waits for the success to be told, at most one drain and a rate limit."""

    async def told() -> bool:
        return bool(await stage.messages("alerts-provisioning", since, name))

    try:
        await stage.until(f"alert about {name}", told, 20)
    finally:
        channels = await stage.channels(since, name)
    return channels


async def nothing_left(stage: Stage) -> Row:
    """After all interruptions: one container per server, one VMID each, no lease held, no operation open."""
    row = Row("what the interruptions left behind", seen_s=0.0, why="nothing: one container, VMID and address per server, no lease held")
    state = await stage.lab_call("GET", "/state")
    built = [c for c in state["containers"].values() if not c["template"]]
    live = await stage.rows(select(t.servers.c.vmid).where(t.servers.c.state != "deleted"))
    held = await stage.rows(select(t.leases.c.subject).where(t.leases.c.holder.is_not(None)))
    reserved = await stage.rows(select(t.vmids.c.vmid).where(t.vmids.c.state == "reserved"))
    row.expect({c["vmid"] for c in built} == {r.vmid for r in live}, "containers and records differ")
    row.expect({r.vmid for r in reserved} == {r.vmid for r in live}, "reserved VMIDs and records differ")
    row.expect(not held, f"leases held: {[r.subject for r in held]}")
    return row
