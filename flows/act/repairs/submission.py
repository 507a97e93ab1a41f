"""Repair of ``operation_unsubmitted``: the sweep hands an attempt to the engine itself, the safety net for a submitter that is gone.

The same attempt under the same key where the engine never saw it, the next one where it saw and lost it: keys never expire there. A call
that arrives late does no harm, since whoever submits the attempt asks for the same run. The lease is the run's to take.
"""

from __future__ import annotations

from collections.abc import Mapping

from flows.act.deps import Deps
from flows.domain.finding import Action, Finding, Outcome
from flows.domain.operation import LIVE_STATES, AttemptState, Operation, engine_key
from flows.domain.sources import EngineRun
from flows.errors import AmbiguousEffect, AutomationError, DeadlineExceeded, Unreachable
from flows.state import attempts, control, operations
from flows.state.attempts import Submission

ACTIONS = frozenset({Action.SUBMIT_ATTEMPT, Action.NEXT_ATTEMPT})
#: Longest time of look, submission and look together, seconds.
LIMIT_S = 10.0
_WAITING = frozenset({AttemptState.UNCLAIMED, AttemptState.SUBMITTING, AttemptState.SUBMITTED})


async def submit(deps: Deps, finding: Finding, epoch: int) -> tuple[Outcome, str]:
    """How it ended, and why. Raises Fenced under a newer epoch, or where a run took the attempt meanwhile; any other AutomationError means
    that nothing was submitted."""
    operation_id, attempt = finding.operation_id, finding.evidence.get("attempt")
    assert operation_id is not None and isinstance(attempt, int)
    async with deps.database.read() as tx:
        operation, generation = await operations.get(tx, operation_id), await control.generation(tx)
    if not _waits(operation, attempt):
        return Outcome.ALREADY_HEALED, ""
    seen = await _run(deps, engine_key(generation, operation_id, attempt))
    if seen is not None and not seen.finished:
        return Outcome.ALREADY_HEALED, ""
    submission = await _take(deps, operation_id, attempt, epoch, lost=seen is not None)
    lost = await _send(deps, submission, generation, epoch)
    try:
        run = await _run(deps, engine_key(generation, operation_id, submission.attempt))
    except AutomationError as error:
        return Outcome.UNVERIFIED, f"{lost or 'submitted'}; {error}"
    return await _judge(deps, submission, run, epoch, lost)


async def _take(deps: Deps, operation_id: str, attempt: int, epoch: int, *, lost: bool) -> Submission:
    async with deps.database.write(epoch=epoch) as tx:
        if lost:
            await attempts.end(tx, operation_id, attempt, "lost")
            attempt = await attempts.next_attempt(tx, operation_id)
        return await attempts.take_over(tx, operation_id, attempt, deps.holder, tx.now + int(2 * LIMIT_S * 1000))


async def _send(deps: Deps, submission: Submission, generation: int, epoch: int) -> AutomationError | None:
    """What became of the answer; None: the engine took it. A refusal gives the attempt back to the submitters and is raised."""
    try:
        await deps.engine.submit(*submission.asked(generation))
    except (Unreachable, AmbiguousEffect, DeadlineExceeded) as error:
        return error
    except AutomationError:
        await _give_back(deps, submission, epoch)
        raise
    return None


async def _judge(deps: Deps, submission: Submission, run: EngineRun | None, epoch: int, lost: AutomationError | None) -> tuple[Outcome, str]:
    """The condition read once more: the engine has the run, or a run has the attempt already."""
    if run is not None and not run.finished:
        async with deps.database.write(epoch=epoch) as tx:
            await attempts.submitted(tx, submission.operation_id, submission.attempt, run.id)
        return Outcome.REPAIRED, ""
    async with deps.database.read() as tx:
        operation = await operations.get(tx, submission.operation_id)
    if not _waits(operation, submission.attempt):
        return Outcome.REPAIRED, ""
    await _give_back(deps, submission, epoch)
    ended = f"its run ended as {run.state}" if run is not None else "the engine does not have it"
    return Outcome.FAILED, f"{ended}; {lost}" if lost else ended


async def _give_back(deps: Deps, submission: Submission, epoch: int) -> None:
    async with deps.database.write(epoch=epoch) as tx:
        await attempts.unsubmit(tx, submission.operation_id, submission.attempt)


async def _run(deps: Deps, key: str) -> EngineRun | None:
    runs: Mapping[str, EngineRun] = await deps.engine.runs([key])
    return runs.get(key)


def _waits(operation: Operation | None, attempt: int) -> bool:
    """Whether no run has the attempt yet, and somebody still wants one to."""
    return operation is not None and operation.state in LIVE_STATES and operation.attempt == attempt and operation.attempt_state in _WAITING
