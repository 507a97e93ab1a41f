"""Flow ``reconcile``: every minute one sweep. Gather, decide, act, report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect import flow
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import bootstrap
from flows.act.sweep import sweep
from flows.report import watchdog
from flows.running import say
from flows.settings import load


@flow(name="reconcile", flow_run_name="sweep", persist_result=False)
async def reconcile() -> State[None] | str:
    """One sweep. Ticks that were missed while no worker ran come late and all at once: they end as superseded."""
    settings = load()
    if late(settings.timing.sweep_s, settings.timing.late_s):
        return Cancelled(message="superseded: scheduled too long ago")
    async with bootstrap.deps(settings) as deps:
        result = await sweep(deps, bootstrap.gate(settings), say())
    if result.outcome == "superseded":
        return Cancelled(message=f"superseded: {result.reason}")
    await watchdog.deadman(settings.deadman, result.outcome)
    return result.outcome


def late(interval_s: float, late_s: float) -> bool:
    """Whether this run was due more than two intervals, and more than ``late_s``, ago."""
    due = flow_run.scheduled_start_time
    return due is not None and datetime.now(UTC) - due > timedelta(seconds=max(2 * interval_s, late_s))
