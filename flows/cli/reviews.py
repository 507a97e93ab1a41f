"""``zlh approve`` and ``zlh reject``: a person's decision on what automation may do only once, and only as asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import output, session
from flows.cli.listings import completions, one
from flows.cli.nouns import BY_NAME
from flows.errors import DeadlineExceeded

if TYPE_CHECKING:
    from flows.domain.finding import Review

#: Seconds between two looks at what became of it, and after which nobody is at work.
LOOK_S, PATIENCE_S = 1.0, 300.0
#: What an agent gives as a time, Unix seconds, is shown as one up to here, in the year 5138.
FAR_S = 1e11


def complete_review(incomplete: str) -> list[str]:
    """Ids of reviews that wait."""
    return completions(BY_NAME["reviews"], incomplete)


ReviewId = Annotated[str, typer.Argument(metavar="ID", help="id, its beginning or its end", autocompletion=complete_review)]


def add_to(app: typer.Typer) -> None:
    app.command()(approve)
    app.command()(reject)


def approve(
    review: ReviewId,
    yes: output.Yes = False,
    wait: Annotated[bool, typer.Option("--wait", help="until it was carried out")] = False,
    json: output.Json = False,
) -> None:
    """Allow one act, exactly as asked: refused if the plan made from a fresh look is another one. The next sweep carries it out."""
    from flows import bootstrap
    from flows.act import approvals

    row, _ = one(BY_NAME["reviews"], review, final=True)
    for line in said(row):
        output.remark(line)
    output.confirm(f"let automation {row['action'].replace('_', ' ')} of {row['plan'].get('where') or row['plan'].get('subject')}?", yes)

    async def run() -> Review:
        async with bootstrap.deps(session.settings()) as deps:
            return await approvals.approve(deps, str(row["id"]), session.actor())

    done = asyncio.run(run())
    outcome = _outcome(done) if wait else None
    if json:
        output.data(output.program(asdict(done) | {"outcome": outcome}))
    elif outcome is None:
        output.text(f"approved; the next sweep carries it out: zlh repairs --check {done.check}")
    else:
        output.text(f"{done.action}: {outcome}")
    if outcome not in (None, "repaired", "already_healed"):
        raise SystemExit(1)


def reject(
    review: ReviewId,
    reason: Annotated[str, typer.Option(help="why; kept in the audit")] = "",
    yes: output.Yes = False,
    json: output.Json = False,
) -> None:
    """Say no. It is asked again, without a ping, when the review expires and the condition still stands."""
    from flows.state import reviews

    row, _ = one(BY_NAME["reviews"], review, final=True)
    output.confirm(f"reject {row['action'].replace('_', ' ')} of {row['plan'].get('where') or row['plan'].get('subject')}?", yes)
    who = session.actor()
    done = session.write(lambda tx: reviews.reject(tx, str(row["id"]), who, reason))
    output.data(output.program(asdict(done))) if json else output.text("rejected")


def said(row: Mapping[str, Any]) -> Iterator[str]:
    """What is asked, for whoever is about to say yes."""
    plan = row["plan"]
    yield f"{plan.get('summary', '')} · {plan.get('where', '')}"
    asked, until = output.moment(row["requested_at"]), output.moment(row["expires_at"])
    yield f"{row['check']} → {row['action']}  asked {asked} by {row['requested_by']}, until {until}"
    for key, value in sorted((plan.get("evidence") or {}).items()):
        yield f"  {key:<20}{_shown(key, value)}"


def _shown(key: str, value: object) -> object:
    """A fact of the plan. Times of the database are ``…_at`` in milliseconds, an agent's ``at`` is in seconds."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if key.endswith("_at") and isinstance(value, int):
        return output.moment(value)
    if key == "at" and isinstance(value, int | float) and 0 < value < FAR_S:
        return output.moment(int(value * 1000))
    return value


def _outcome(review: Review) -> str:
    """What became of the act. Raises DeadlineExceeded where no sweep takes it."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        found, _ = one(BY_NAME["reviews"], review.id)
        if found["decision"] not in ("approved", "carried_out"):
            return str(found["decision"])
        # Carried out in the transaction of its act's intent: only then is the newest act its own.
        rows, _ = session.rows(lambda now: _acts(review)) if found["decision"] == "carried_out" else ([], 0)
        if rows and rows[0]["outcome"]:
            return str(rows[0]["outcome"])
        time.sleep(LOOK_S)
    raise DeadlineExceeded(f"review {review.id[-8:]}", why=f"not carried out in {PATIENCE_S:.0f} s", remedy="does anything sweep? zlh status")


def _acts(review: Review) -> Any:
    from flows.state.quick import Query

    return Query(
        """SELECT r.outcome FROM repairs r WHERE r."check" = :check AND r.subject = :subject AND r.action = :action AND r.intent_at >= :since
           ORDER BY r.intent_at DESC, r.id DESC LIMIT 1""",
        {"check": review.check.value, "subject": review.subject, "action": review.action.value, "since": review.decided_at or 0},
    )
