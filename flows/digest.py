"""Flow ``digest``: the day in one message."""

from __future__ import annotations

from prefect import flow

from flows import bootstrap
from flows.act.policy import policy_of
from flows.report import digest as report
from flows.running import say
from flows.settings import load
from flows.state import retention


@flow(name="digest", flow_run_name="digest", persist_result=False)
async def digest() -> str:
    """Fleet health, repairs, backups, queues, open breakers and pending reviews go to system-health; old rows go away."""
    settings = load()
    database = bootstrap.database(settings)
    try:
        event = await report.send(database, bootstrap.calendar_of(settings), policy_of(settings))
        await retention.prune(database, settings.policy.keep_days)
    finally:
        await database.close()
    say()(event.what)
    return event.key
