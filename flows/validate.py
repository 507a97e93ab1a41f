"""Flow ``post-migration``: is everything as it should be after a migration? Until it is, no order is taken but its own."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Failed

from flows import bootstrap
from flows.act import post_migration as migration
from flows.running import say
from flows.settings import load


@flow(name="post-migration", flow_run_name="post-migration", persist_result=False)
async def post_migration() -> State[None] | str:
    """M1 database, M2 resets, M3 workers, M5 one controlled creation; the first failure ends it, and leaves intake closed."""
    async with bootstrap.post_migration(load(), run_id=str(flow_run.id or "")) as parts:
        ending = await migration.run(parts, say())
    for problem in ending.report.problems:
        say()(f"{problem.rule}: {problem.says} · {', '.join(problem.objects)} · {problem.remedy}")
    for unlooked in ending.report.unlooked:
        say()(f"not looked at: {unlooked.what} · {unlooked.why} · {unlooked.remedy}")
    if ending.stopped_at is not None:
        return Failed(message=f"stopped at {ending.stopped_at.value}: intake stays closed; see the log, then run it again")
    return "passed"
