"""Commands that run the program's own processes: ``up``, ``api``, ``dispatch``, ``watchdog``, ``worker``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import output, session

if TYPE_CHECKING:
    from flows.settings import Settings

#: Seconds for operations under way when everything is stopped. A unit's time-out must be longer: see docs/install.md.
DRAIN_S = 900.0


def add_to(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(api)
    app.command()(dispatch)
    app.command()(watchdog)
    app.command()(demo)
    worker = typer.Typer(help="The engine's worker.", no_args_is_help=True)
    worker.command("drain")(drain)
    app.add_typer(worker, name="worker")


def up(
    directory: Annotated[Path, typer.Option("--dir", help="directory of database, secrets, logs")] = Path("var/up"),
    fleet: Annotated[str, typer.Option(help="sim: start the simulated fleet too; lxc: real containers, as root; none: by your settings")] = "sim",
    short: Annotated[bool, typer.Option("--short", help="short intervals, for trying it out")] = False,
    drain: Annotated[float | None, typer.Option("--drain", help="seconds for operations to finish at the end [sim: 30, none: 900]")] = None,
) -> None:
    """Run the whole control plane here: API, Prefect server, worker, dispatcher, watchdog. Ctrl-C drains and stops."""
    from flows.cli.stack import Stack
    from flows.errors import BadInput

    if fleet not in ("sim", "lxc", "none"):
        raise BadInput("--fleet", fleet, why="is no fleet of this version", remedy="use sim, lxc or none")
    stack = Stack(directory, fleet=fleet, short=short, say=lambda line: print(line, flush=True))  # noqa: T201 - the command's output
    stop = False

    def request(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, request)
    try:
        stack.prepare()
        stack.start()
        for line in stack.urls():
            print(line, flush=True)  # noqa: T201 - the command's output
        signal.signal(signal.SIGINT, request)
        while not stop:
            time.sleep(0.2)
            stack.require_alive()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stack.stop(drain_s=drain if drain is not None else DRAIN_S if fleet == "none" else 30.0)


def demo(
    fleet: Annotated[str, typer.Option(help="the fleet to break: sim, or lxc for real containers, as root")] = "sim",
    directory: Annotated[Path, typer.Option("--dir", help="directory of the demo's state; emptied first")] = Path("var/demo"),
    json_file: Annotated[Path | None, typer.Option("--json", help="write the verdict as data to this file")] = None,
) -> None:
    """Provision three servers, break things, show each fault seen, healed or explained. Exit 0 only if every expectation held."""
    from flows.cli.demo.run import run
    from flows.errors import BadInput

    if fleet not in ("sim", "lxc"):
        raise BadInput("--fleet", fleet, why="is no fleet of this version", remedy="use sim or lxc")
    raise SystemExit(run(directory, json_file, fleet))


async def _until_signalled(run: object) -> None:
    """Runs a coroutine function with an Event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    assert callable(run)
    await run(stop)


async def refuse_other_schema(settings: Settings) -> None:
    """Raises Conflict before anything is served from tables of another version. A database that does not answer is no such reason: what is
    served says so until it does."""
    from flows.errors import Unreachable
    from flows.state import migrate

    with contextlib.suppress(Unreachable):
        await migrate.check(settings.database.url.get_secret_value())


def api() -> None:
    """Serve the customers' and the control listener."""
    settings = session.settings()

    async def run(stop: asyncio.Event) -> None:
        from flows import bootstrap
        from flows.api.deps import ApiDeps
        from flows.api.serve import serve

        await refuse_other_schema(settings)
        database, catalog = bootstrap.database(settings), bootstrap.catalog(settings)
        try:
            await serve(ApiDeps(database, settings, bootstrap.router(settings), catalog), stop)
        finally:
            await catalog.close()
            await database.close()

    asyncio.run(_until_signalled(run))


def dispatch() -> None:
    """Deliver the outbox to Discord and mail, and hand new operations to the engine."""
    settings = session.settings()

    async def run(stop: asyncio.Event) -> None:
        from flows import bootstrap
        from flows.report.dispatch import run as dispatching

        await refuse_other_schema(settings)
        async with bootstrap.dispatcher(settings) as parts:
            await dispatching(**parts, settings=settings, stop=stop)

    asyncio.run(_until_signalled(run))


def watchdog(
    every: Annotated[float, typer.Option(help="seconds between two looks; 0: look once")] = 0.0,
    json: output.Json = False,
) -> None:
    """Alert when no sweep finishes, or the outbox stands still. Exit 1 when it found something."""
    settings = session.settings()
    found = asyncio.run(_watch(settings, every))
    if json:
        output.data({"says": {0: "well", 1: "problem"}.get(found, "blind")})
    raise SystemExit(found)


async def _watch(settings: Settings, every: float) -> int:
    from flows import bootstrap
    from flows.report import watchdog as watching

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with bootstrap.watchdog(settings) as parts:
        while True:
            status = await watching.check(**parts, settings=settings)
            if every <= 0:
                return int(status)
            try:
                await asyncio.wait_for(stop.wait(), every)
                return 0
            except TimeoutError:
                continue


def drain(
    limit: Annotated[float, typer.Option(help="seconds to wait for runs under way")] = DRAIN_S,
    json: output.Json = False,
) -> None:
    """Hand out no more runs and wait for those under way: before the worker is stopped."""
    from flows.cli.drain import drain as draining

    left = asyncio.run(draining(session.settings().engine, limit))
    if json:
        output.data({"left": left})
    if left:
        sys.stderr.write(f"zlh: {left} runs still under way after {limit:g} s; their operations will be taken up again\n")
        raise SystemExit(1)
