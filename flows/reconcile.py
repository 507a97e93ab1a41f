"""Flow ``reconcile``: every minute one sweep. Gather, decide, act, report."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import bootstrap
from flows.act.sweep import sweep, too_late
from flows.report import watchdog
from flows.running import say
from flows.settings import TimingSettings, load


@flow(name="reconcile", flow_run_name="sweep", persist_result=False)
async def reconcile() -> State[None] | str:
    """One sweep. Ticks that were missed while no worker ran come late and all at once: they end as superseded."""
    settings = load()
    if late(settings.timing):
        return Cancelled(message="superseded: scheduled too long ago")
    async with bootstrap.deps(settings) as deps:
        result = await sweep(deps, bootstrap.gate(settings), say())
    if result.outcome == "superseded":
        return Cancelled(message=f"superseded: {result.reason}")
    await watchdog.deadman(settings.deadman, result.outcome)
    return result.outcome


def late(timing: TimingSettings) -> bool:
    """Whether this run was due too long ago."""
    due = flow_run.scheduled_start_time
    return due is not None and too_late((datetime.now(UTC) - due).total_seconds(), timing)
