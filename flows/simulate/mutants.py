"""Defects on purpose: each takes one safeguard out of the product, at its own seam, and must be caught by its invariant.

The product has no switch for any of them: they are patched into this one process, which simulates and ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from flows.act import endings
from flows.act import repair as repairing
from flows.act.steps import final
from flows.act.steps.registry import STEPS
from flows.act.steps.workload import RestartWorkload
from flows.decide import announce, holds, verdict
from flows.decide.breakers import Breakers
from flows.decide.checks.registry import CHECKS
from flows.domain.finding import Check, Finding, Suppressed
from flows.domain.known import Known
from flows.domain.operation import StepName
from flows.domain.sources import EngineView, ProxmoxView, ProxyView, ZoneView
from flows.errors import BadInput
from flows.observe import gather
from flows.simulate import subtle
from flows.simulate.subtle import Patch, nothing
from flows.state import control, database, epochs, leases, outbox, repairs, vmids
from flows.state.ids import new_id


@dataclass(frozen=True)
class Mutant:
    """``caught_by`` names the invariant that must find it."""

    name: str
    caught_by: str
    what: str
    patches: Callable[[], list[Patch]]


async def _yes(*_: object, **__: object) -> bool:
    return True


def _blind(check: Check) -> list[Patch]:
    return [(CHECKS, check, replace(CHECKS[check], find=lambda snapshot, policy: ()))]


def _unknown_is_missing() -> list[Patch]:
    honest = vars(gather)["ask"]
    empty = {"Proxmox.view": ProxmoxView({}, {}), "Proxy.view": ProxyView({}), "Dns.zone": ZoneView({}, {}), "_engine": EngineView({})}

    async def ask(call: Awaitable[Any], limit_s: float) -> Any:
        name = getattr(call, "__qualname__", "")
        answer = await honest(call, limit_s)
        return answer if isinstance(answer, Known) else Known(empty[name])

    return [(gather, "ask", ask)]


def _level() -> list[Patch]:
    honest = verdict.Judge._forbidden

    def forbidden(self: Any, finding: Finding) -> Suppressed | None:
        return honest(self, replace(finding, level=0))

    return [(verdict.Judge, "_forbidden", forbidden), *_looks_again(lambda finding: replace(finding, level=0))]


def _looks_again(blind: Callable[[Finding], Finding]) -> list[Patch]:
    """The look at brakes and level in the transaction of an intent, with something of the finding hidden from it."""
    honest = vars(repairing)["_stopped_since"]

    async def stopped_since(tx: Any, finding: Finding) -> bool:
        return bool(await honest(tx, blind(finding)))

    return [(repairing, "_stopped_since", stopped_since)]


def _pause_ignored() -> list[Patch]:
    async def stopped_since(tx: Any, finding: Finding) -> bool:
        return finding.level > await control.repair_level(tx)

    return [(holds, "in_force", lambda fleet, now: []), (repairing, "_stopped_since", stopped_since)]


async def _no_intent(tx: Any, repair: Any, epoch: int, **_: object) -> str:
    return new_id()


def _stolen() -> list[Patch]:
    from flows.domain.lease import Lease

    def blocks(self: Lease, now: int) -> bool:
        return False

    async def take(tx: Any, subject: str, *args: Any, **more: Any) -> Any:
        current = await leases.get(tx, subject)
        if current is not None and current.holder is not None:
            await leases.revoke(tx, subject)
        return await honest(tx, subject, *args, **more)

    honest = leases.take
    return [(Lease, "blocks", blocks), (leases, "take", take)]


async def _first_vmid(tx: Any, server_id: str, first: int, last: int) -> int:
    return first


def _sent_twice() -> list[Patch]:
    return [(outbox, "sent", nothing)]


def _destroy_skipped() -> list[Patch]:
    step = STEPS[StepName.DESTROY_CONTAINER]
    return [(type(step), "do", nothing), (final.Release, "prepare", nothing), (endings, "_absent", _yes)]


def _restart_again() -> list[Patch]:
    async def do(self: RestartWorkload, ctx: Any) -> None:
        from flows.act.steps.workload import wait_ready

        await ctx.sent(ctx.deps.agents.restart(ctx.server, ctx.token))
        await wait_ready(ctx)

    return [(RestartWorkload, "do", do)]


_ALL = (
    Mutant("vmid_reused", "vmid_unique", "every creation gets the first VMID of the range", lambda: [(vmids, "reserve", _first_vmid)]),
    Mutant("destroy_skipped", "vmid_unique", "a deletion releases without destroying", _destroy_skipped),
    Mutant("breaker", "attempt_limit", "no breaker ever opens", lambda: [(Breakers, "blocks", lambda self, finding: "")]),
    Mutant(
        "pause_ignored", "lock_respected", "brakes are neither planned with nor read before an act",
        _pause_ignored,
    ),
    Mutant("lease_stolen", "lock_respected", "a held lease is taken all the same", _stolen),
    Mutant(
        "fencing", "no_double_effect", "a superseded sweep notices nothing, and may write",
        lambda: [(database, "_guard", nothing), (epochs, "renew", nothing)],
    ),
    Mutant("restart_again", "no_double_effect", "a restart whose answer was lost is sent once more", _restart_again),
    Mutant("level", "level_respected", "the repair level is not asked", _level),
    Mutant("dns_unmended", "converges", "a missing record is not looked for", lambda: _blind(Check.DNS_RECORD)),
    Mutant("orphans_stay", "converges", "an expired lease of an operation is not looked for", lambda: _blind(Check.OPERATION_ORPHANED)),
    Mutant("silence", "alerted", "transitions of episodes cause no message", lambda: [(announce, "events", lambda plan, now: ())]),
    Mutant("sent_twice", "alerted", "that a message was sent is not remembered", _sent_twice),
    Mutant("unknown_is_missing", "known_only", "a source that does not answer counts as empty", _unknown_is_missing),
    Mutant("no_intent", "explained", "repairs act without writing what they are about to do", lambda: [(repairs, "intent", _no_intent)]),
    Mutant("no_outcome", "explained", "how a repair ended is not written", lambda: [(repairs, "outcome", _yes)]),
    Mutant("intent_shared", "explained", "a sweep writes one intent, and acts as it likes", subtle.intent_shared),
    Mutant("journal_shared", "explained", "of an operation's steps only the first stands in the journal", subtle.journal_shared),
    Mutant("begins_deposed", "no_double_effect", "a superseded sweep still begins a repair", subtle.begins_deposed),
    Mutant("brakes_planned", "lock_respected", "brakes are not read again before an act", subtle.brakes_planned),
    Mutant("lease_unminded", "lock_respected", "a run whose lease was revoked goes on", subtle.lease_unminded),
    Mutant("bulk_for_all", "lock_respected", "a bulk repair leaves nobody out", subtle.bulk_for_all),
    Mutant("mended_late", "converges", "a repair waits until its finding is eight minutes old", subtle.mended_late),
    Mutant("undo_given_up", "converges", "an undo that failed once is not tried again", subtle.undo_given_up),
    Mutant("worse_untold", "alerted", "that a finding grew worse causes no message", subtle.worse_untold),
    Mutant("escalation_lost", "alerted", "a finding that turns out to be a person's causes no message", subtle.escalation_lost),
    Mutant("over_untold", "alerted", "the end of a finding causes no message", subtle.over_untold),
    Mutant("never_recalled", "alerted", "nobody is reminded of what waits for a person", subtle.never_recalled),
    Mutant("told_again", "alerted", "that people were told of a finding is not remembered", subtle.told_again),
    Mutant("silence_untold", "alerted", "a source that stays unknown calls nobody", subtle.silence_untold),
    Mutant("silence_is_unready", "known_only", "an agent without an answer counts as not ready", subtle.silence_is_unready),
    Mutant("silence_is_rest", "known_only", "without an answer nothing counts as under way", subtle.silence_is_rest),
    Mutant("unready_forgotten", "edge_truth", "an agent without an answer makes forget that it was not ready", subtle.unready_forgotten),
    Mutant("unready_stays", "edge_truth", "an unready backend stays registered", lambda: _blind(Check.PROXY_STALE_REGISTRATION)),
)  # fmt: skip
MUTANTS: Mapping[str, Mutant] = {m.name: m for m in _ALL}


def named(name: str) -> Mutant:
    if name not in MUTANTS:
        raise BadInput("break", name, why="is no mutant", remedy=f"choose among {', '.join(MUTANTS)}")
    return MUTANTS[name]


@contextmanager
def broken(mutant: Mutant | None) -> Iterator[None]:
    """The product without that safeguard, until the end of the block."""
    before: list[Patch] = []
    for place, name, instead in mutant.patches() if mutant is not None else ():
        mapping = isinstance(place, MutableMapping)
        before.append((place, name, place[name] if mapping else getattr(place, name)))
        _put(place, name, instead)
    try:
        yield
    finally:
        for place, name, instead in reversed(before):
            _put(place, name, instead)


def _put(place: Any, name: Any, value: Any) -> None:
    if isinstance(place, MutableMapping):
        place[name] = value
    else:
        setattr(place, name, value)


__all__ = ["MUTANTS", "Mutant", "broken", "named"]
