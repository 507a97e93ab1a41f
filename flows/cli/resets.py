"""``zlh redis reset`` and ``zlh engine reset``: execution state thrown away and made anew, and the proof that the next sweep is clean (M2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import output, session

if TYPE_CHECKING:
    from flows.domain.validation import Report

Force = Annotated[bool, typer.Option("--force", help="also under live leases: their runs are fenced, and taken up again by the sweep")]


def add_to(app: typer.Typer) -> None:
    redis = typer.Typer(help="Redis, which may be thrown away at any time.", no_args_is_help=True)
    redis.callback()(_group)
    redis.command("reset")(redis_reset)
    app.add_typer(redis, name="redis")
    engine = typer.Typer(help="Prefect's database, which may be thrown away at any time.", no_args_is_help=True)
    engine.callback()(_group)
    engine.command("reset")(engine_reset)
    app.add_typer(engine, name="engine")


def _group() -> None:
    """A callback makes it a group although it has one command."""


def redis_reset(
    everything: Annotated[bool, typer.Option("--all", help="the whole server with every database of it, not our keys alone")] = False,
    force: Force = False,
    yes: output.Yes = False,
    json: output.Json = False,
) -> None:
    """Remove our keys from Redis, and prove by a sweep that nothing was lost. Refused while a lease is live.

    Exit 1 if the sweep finds what was not known before, 3 if none could be seen."""
    from flows import bootstrap
    from flows.act import resets
    from flows.errors import MisconfiguredSetting

    settings = session.settings()
    server = bootstrap.redis_server(settings)
    if server is None:
        raise MisconfiguredSetting("ZLH_REDIS__URL", why="is not set: there is no Redis to reset", remedy="nothing to do, or set it")
    what = "everything in the whole Redis server, other programs' keys too" if everything else f"every key {settings.redis.prefix}* of Redis"
    output.confirm(f"remove {what}?", yes)

    async def run() -> tuple[int, Report]:
        try:
            async with bootstrap.deps(settings) as deps:
                removed = await resets.reset_redis(deps.database, server, session.actor(), everything=everything, force=force)
                gate = bootstrap.gate(settings)
                try:
                    return removed, await resets.prove_sweep(deps, gate, lambda line: None, gated=True)
                finally:
                    await gate.close()
        finally:
            await server.close()

    removed, report = asyncio.run(run())
    _finish({"removed": removed}, f"removed {removed} key{'' if removed == 1 else 's'}", report, json)


def engine_reset(force: Force = False, yes: output.Yes = False, json: output.Json = False) -> None:
    """Make Prefect's database anew by our own deployments, and raise the generation: old runs end before any effect. Refused while a lease is
    live. Operations that wait are submitted again by themselves.

    Exit 1 if the sweep after it finds what was not known before, 3 if none could be seen."""
    from flows import bootstrap
    from flows.act import resets

    settings = session.settings()
    output.confirm("throw Prefect's database away, with every run's history, and make it anew?", yes)

    async def run() -> tuple[int, Report]:
        async with bootstrap.deps(settings) as deps, bootstrap.engine_setup(settings) as setup:

            async def renew() -> None:
                await setup.renew(bootstrap.PREFECT_FILE, interval_s=settings.timing.sweep_s)

            if not force:
                await resets.refuse_live(deps.database, "engine reset")
            await setup.renewable()
            generation = await resets.reset_engine(deps.database, renew, session.actor(), force=force)
            gate = bootstrap.gate(settings)
            try:
                gated = bool(settings.redis.url.get_secret_value())
                return generation, await resets.prove_sweep(deps, gate, lambda line: None, gated=gated)
            finally:
                await gate.close()

    generation, report = asyncio.run(run())
    _finish({"generation": generation}, f"Prefect's database is new; generation {generation}", report, json)


def _finish(done: dict[str, int], says: str, report: Report, json: bool) -> None:
    from flows.cli.validate import as_data, lines, status

    if json:
        output.data(done | as_data(report))
    else:
        output.text(says)
        for line in lines(report):
            output.text(line)
    raise SystemExit(status(report))
