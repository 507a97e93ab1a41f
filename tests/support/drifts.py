"""What may be wrong in a world, one for each repair: how it comes about, who sees the repair's effect, and how it is when it is right again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from flows.domain.finding import Action
from flows.domain.operation import OperationKind
from flows.domain.server import BillingState
from flows.domain.sources import Record
from flows.state import accounts, attempts, control, customers, leases, operations, orders
from tests.support import receivers
from tests.support.receivers import State

if TYPE_CHECKING:
    from tests.support.rig import Rig


class Kind(StrEnum):
    LEASED = "leased"  # the sweep acts itself, under a lease
    ORDERED = "ordered"  # it orders an operation, whose run acts
    REVOKED = "revoked"  # it changes an operation, in one transaction
    SUBMITTED = "submitted"  # it hands an attempt to the engine


@dataclass(frozen=True)
class Drift:
    """``call`` is the client's call that heals it, ``held`` target and calls of the fault that makes it late. ``effects`` lists what
    receivers did about it (nothing that they refused, nothing that changed nothing), ``refused`` what a receiver's journal says of a late
    call. ``confirm``: sweeps that see it before one acts. ``kind``: by what its repair acts, and so where it may stand still."""

    action: Action
    make: Callable[[Rig], Awaitable[None]]
    healed: Callable[[Rig, State], Awaitable[bool]]
    effects: Callable[[Rig, State], list[Any]]
    call: str = ""
    held: tuple[str, str] = ("", "")
    refused: Callable[[Rig, State], list[Any]] = lambda rig, state: []
    restore: Callable[[Rig], Awaitable[None]] | None = None
    confirm: int = 1
    kind: Kind = Kind.LEASED
    #: At Proxmox a late call may arrive as well, if it converges.
    convergent: bool = False


# ── the edge ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _deregistered(rig: Rig) -> None:
    await rig.lab("POST", "/bridge/deregister", name=rig.game.name)


async def _ghost(rig: Rig) -> None:
    await rig.lab("POST", "/bridge/register", name="ghost", address="127.20.9.9", port=25565)


async def _unpublished(rig: Rig) -> None:
    await rig.lab("POST", "/dns", op="delete", name=rig.fqdn, rtype="A")


async def _wiped(rig: Rig) -> None:
    """Nothing of the name is left: not even a late update can be told by it from one in time."""
    for record in await rig.deps.dns.records(rig.fqdn):
        await rig.lab("POST", "/dns", op="delete", name=record.name, rtype=record.rtype)


async def _stale(rig: Rig) -> None:
    await rig.deps.dns.publish("gone.play.example", [Record("gone.play.example", "A", "192.0.2.7")], "no-such-server", [])


async def _is_registered(rig: Rig, state: State) -> bool:
    return receivers.registered(state, rig.game.name)


async def _no_ghost(rig: Rig, state: State) -> bool:
    return not receivers.registered(state, "ghost")


async def _is_published(rig: Rig, state: State) -> bool:
    return "A" in receivers.records(state, rig.fqdn)


async def _nothing_stale(rig: Rig, state: State) -> bool:
    return not receivers.records(state, "gone.play.example")


#: More than the settings' ``drift_min``, and most of what is registered: one incident.
GHOSTS = tuple(f"ghost-{n}" for n in range(1, 7))


async def _haunted(rig: Rig) -> None:
    for n, name in enumerate(GHOSTS, 1):
        await rig.lab("POST", "/bridge/register", name=name, address=f"127.20.9.{n}", port=25565)


async def _not_haunted(rig: Rig, state: State) -> bool:
    return not any(receivers.registered(state, name) for name in GHOSTS) and receivers.registered(state, rig.game.name)


# ── workloads ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _suspend(rig: Rig, customer_id: str) -> None:
    async with rig.database.write() as tx:
        await customers.set_billing(tx, customer_id, BillingState.SUSPENDED, "test")


async def _game_suspended(rig: Rig) -> None:
    await _suspend(rig, rig.game.customer_id)


async def _dev_suspended(rig: Rig) -> None:
    await _suspend(rig, rig.dev.customer_id)


async def _game_at_rest(rig: Rig, state: State) -> bool:
    agent = state["parts"]["agents"]["agents"][str(rig.game.vmid)]
    return agent["state"] == "stopped" and not receivers.registered(state, rig.game.name)


async def _dev_down(rig: Rig, state: State) -> bool:
    return bool(state["containers"][str(rig.dev.vmid)]["status"] == "stopped")


async def both_again(rig: Rig) -> None:
    """They are one customer's, and both were stopped."""
    async with rig.database.write() as tx:
        await accounts.resume(tx, rig.game.customer_id, "test")
    for server in (rig.game, rig.dev):
        await rig.ended(await rig.order(server.id, OperationKind.START))


async def _level(rig: Rig, level: int) -> None:
    async with rig.database.write() as tx:
        await control.set_repair_level(tx, level, "test")


async def _container_died(rig: Rig) -> None:
    await _level(rig, 2)
    await rig.lab("POST", f"/containers/{rig.game.vmid}/die")


async def _game_ended(rig: Rig) -> None:
    await _level(rig, 2)
    await _game_stopped(rig)


async def _game_stopped(rig: Rig) -> None:
    """By somebody with the agent's credential, whose word is the newest so far; its container runs on."""
    async with rig.database.read() as tx:
        lease = await leases.get(tx, rig.game.id)
    await rig.deps.agents.stop(rig.game, lease.token if lease is not None else 0)

    async def stopped() -> bool:
        state = await rig.state()
        return bool(state["parts"]["agents"]["agents"][str(rig.game.vmid)]["state"] == "stopped")

    await rig.until("the game has ended", stopped, 20)


async def _plays_again(rig: Rig, state: State) -> bool:
    """And whoever started it is done."""
    agent = state["parts"]["agents"]["agents"].get(str(rig.game.vmid), {})
    if not agent.get("ready") or not receivers.registered(state, rig.game.name):
        return False
    async with rig.database.read() as tx:
        return await operations.live_of(tx, rig.game.id) is None


async def _not_registered(rig: Rig, state: State) -> bool:
    return not receivers.registered(state, rig.game.name)


async def _plays_on(rig: Rig) -> None:
    await rig.ended(await rig.order(rig.game.id, OperationKind.START))


async def _level_one(rig: Rig) -> None:
    await _level(rig, 1)


def _container_starts(rig: Rig, state: State) -> list[Any]:
    return receivers.power(state, rig.game.vmid, "start")


# ── operations ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _orphaned(rig: Rig) -> None:
    """A restart whose run claimed its attempt and was never heard of again."""
    async with rig.database.write() as tx:
        ordered = await orders.control(tx, rig.game.id, OperationKind.RESTART, "test", deadline_ms=600_000)
        assert ordered.operation is not None
        await attempts.claim_run(tx, ordered.operation.id, 1, await control.generation(tx), "dead", 1)
    rig.operation_id = ordered.operation.id
    await asyncio.sleep(0.005)  # the lease's one millisecond


async def _unsubmitted(rig: Rig) -> None:
    """A restart that no submitter came for."""
    async with rig.database.write() as tx:
        ordered = await orders.control(tx, rig.game.id, OperationKind.RESTART, "test", deadline_ms=600_000)
    assert ordered.operation is not None
    rig.operation_id = ordered.operation.id


async def _ended(rig: Rig, state: State) -> bool:
    async with rig.database.read() as tx:
        operation = await operations.get(tx, rig.operation_id)
    return operation is not None and operation.finished_at is not None


def _restarts(rig: Rig, state: State) -> list[Any]:
    return receivers.done(receivers.agent(state, rig.game.vmid, "/game/restart"))


DRIFTS: Mapping[str, Drift] = {
    "register": Drift(
        Action.REGISTER_PROXY,
        _deregistered,
        _is_registered,
        lambda rig, s: receivers.done(receivers.bridge(s, "PUT", rig.game.name)),
        "proxy.register",
        ("bridge", "PUT *"),
        lambda rig, s: receivers.fenced(receivers.bridge(s, "PUT", rig.game.name)),
    ),
    "deregister": Drift(
        Action.DEREGISTER_PROXY,
        _ghost,
        _no_ghost,
        lambda rig, s: receivers.done(receivers.bridge(s, "DELETE", "ghost")),
        "proxy.deregister",
        ("bridge", "DELETE *"),
        lambda rig, s: receivers.fenced(receivers.bridge(s, "DELETE", "ghost")),
        confirm=2,
    ),
    "publish": Drift(
        Action.PUBLISH_DNS,
        _unpublished,
        _is_published,
        lambda rig, s: receivers.changed(s, rig.fqdn),
        "dns.publish",
        ("dns", "UPDATE *"),
        lambda rig, s: receivers.unmet(s, rig.fqdn),
    ),
    "withdraw": Drift(
        Action.WITHDRAW_DNS,
        _stale,
        _nothing_stale,
        lambda rig, s: receivers.changed(s, "gone.play.example"),
        "dns.withdraw",
        ("dns", "UPDATE *"),
        lambda rig, s: receivers.unmet(s, "gone.play.example"),
        confirm=2,
    ),
    "stop": Drift(
        Action.SUSPEND_WORKLOAD,
        _game_suspended,
        _game_at_rest,
        lambda rig, s: receivers.done(receivers.agent(s, rig.game.vmid, "/game/stop")),
        "agents.stop",
        ("agents", "POST *"),
        lambda rig, s: receivers.fenced(receivers.agent(s, rig.game.vmid, "/game/stop")),
        both_again,
    ),
    "shutdown": Drift(
        Action.SUSPEND_WORKLOAD,
        _dev_suspended,
        _dev_down,
        lambda rig, s: receivers.power(s, rig.dev.vmid),
        "proxmox.shutdown",
        ("proxmox", "POST *shutdown"),
        restore=both_again,
        convergent=True,
    ),
    "rehydrate": Drift(
        Action.REHYDRATE_PROXY,
        _haunted,
        _not_haunted,
        lambda rig, s: receivers.done(receivers.bridge(s, "POST", "rehydrate")),
        "proxy.rehydrate",
        ("bridge", "POST /rehydrate"),
        # It carries no token: it says what is wanted when it arrives, and a late one finds nothing to change.
        lambda rig, s: [c for c in receivers.bridge(s, "POST", "rehydrate") if not c["effect"]],
        confirm=2,
    ),
    "container": Drift(
        Action.START_WORKLOAD, _container_died, _plays_again, _container_starts, restore=_level_one, confirm=3, kind=Kind.ORDERED, convergent=True
    ),
    "game": Drift(
        Action.START_WORKLOAD,
        _game_ended,
        _plays_again,
        lambda rig, s: receivers.done(receivers.agent(s, rig.game.vmid, "/game/start")),
        restore=_level_one,
        confirm=3,
        kind=Kind.ORDERED,
    ),
    "unready": Drift(
        Action.DEREGISTER_PROXY,
        _game_stopped,
        _not_registered,
        lambda rig, s: receivers.done(receivers.bridge(s, "DELETE", rig.game.name)),
        "proxy.deregister",
        ("bridge", "DELETE *"),
        lambda rig, s: receivers.fenced(receivers.bridge(s, "DELETE", rig.game.name)),
        _plays_on,
        confirm=2,
    ),
    "orphaned": Drift(Action.REVOKE_AND_RESUBMIT, _orphaned, _ended, _restarts, kind=Kind.REVOKED),
    "unsubmitted": Drift(Action.SUBMIT_ATTEMPT, _unsubmitted, _ended, _restarts, "engine.submit", kind=Kind.SUBMITTED),
}

#: A name that was free and is free again: a late publication meets what it saw. In no other respect than "publish".
WIPED = replace(DRIFTS["publish"], make=_wiped)


def at_cloudflare(drift: Drift) -> Drift:
    """The same where the zone is Cloudflare's, which knows no prerequisites: what comes late may arrive, if it converges."""
    return replace(drift, held=("dns", "POST *"), convergent=True)
