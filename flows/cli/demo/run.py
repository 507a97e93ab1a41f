"""The demo from the first process to the verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console

from flows.cli.demo import faults, provisioning, report
from flows.cli.demo.report import Row
from flows.cli.demo.stage import Stage
from flows.cli.demo.view import View
from flows.cli.stack import Stack
from flows.errors import AutomationError


def run(directory: Path, json_file: Path | None, fleet: str = "sim") -> int:
    """0 only if every expectation held."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    began = time.monotonic()
    Stack.discard(directory)
    with View(console) as view:
        view.say("short intervals for this demo: sweep 10 s, heartbeat 3 s, lease 15 s (production: 60, 10, 60)")
        stack = Stack(directory, fleet=fleet, short=True, say=view.say)
        try:
            stack.prepare()
            view.say(
                f"{'simulated fleet' if fleet == 'sim' else 'fleet of real containers'} is up; starting the API, the Prefect server and its worker"
            )
            stack.start()
            for line in stack.urls():
                view.say(line)
            rows = asyncio.run(_acts(stack, view))
        finally:
            stack.stop(drain_s=10.0)
    seconds = time.monotonic() - began
    report.show(rows, seconds, console)
    if json_file is not None:
        report.write(rows, seconds, json_file)
    return 0 if all(row.ok for row in rows) else 1


async def _acts(stack: Stack, view: View) -> list[Row]:
    stage = Stage(stack, view.say)
    watching = asyncio.create_task(view.follow(stage))
    try:
        return await _play(stage)
    finally:
        watching.cancel()
        await stage.close()


async def _play(stage: Stage) -> list[Row]:
    p, f = provisioning, faults
    ids = await p.order_all(stage)
    stage.say("three servers ordered through the front door, one of them 20 times at once")
    rows = [await p.submitted_twenty_times(stage, ids["fern"])]
    rows += await asyncio.gather(
        _row(stage, "flow killed", lambda: p.interrupted(stage, "flow run's process group killed with -9", "lotus", ids["lotus"], p.flow_killed)),
        _row(stage, "worker stopped", lambda: p.interrupted(stage, "worker stopped by SIGTERM", "workbench", ids["workbench"], p.worker_stopped)),
        _row(stage, "both killed", lambda: p.interrupted(stage, "flow and worker killed with -9", "fern", ids["fern"], p.both_killed)),
    )
    rows.append(await _row(stage, "leftovers", lambda: p.nothing_left(stage)))
    if stage.lab.fleet == "lxc":
        rows.append(await _row(stage, "player", lambda: p.player_arrives(stage, "lotus")))
    stage.say("the fleet is up; now overlapping faults")
    rows += await asyncio.gather(
        _row(stage, "Discord", lambda: f.discord_down(stage, 24.0)),
        _row(stage, "DNS", lambda: f.dns_deleted(stage, "lotus")),
        _row(stage, "proxy", lambda: f.proxy_restarted(stage, "lotus")),
        _row(stage, "unready", lambda: f.unready_registered(stage, "globex", "workbench")),
        _row(stage, "agent", lambda: f.agent_killed(stage, "fern")),
    )
    rows.append(await _row(stage, "Proxmox", lambda: f.proxmox_unreachable(stage)))
    rows.append(await _row(stage, "rights", lambda: f.proxmox_rights_lost(stage)))
    return rows


async def _row(stage: Stage, name: str, act: Callable[[], Awaitable[Row]]) -> Row:
    """An act that fails is a row that failed, and the others go on."""
    try:
        row = await act()
    except AutomationError as error:
        row = Row(name, failures=[str(error)])
    stage.say(f"{row.fault}: {'as expected' if row.ok else 'NOT as expected'}")
    return row
