"""What may be wrong in a world, one for each repair: how it comes about, who sees the repair's effect, and how it is when it is right again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.domain.finding import Action
from flows.domain.operation import OperationKind
from flows.domain.server import BillingState
from flows.domain.sources import Record
from flows.state import accounts, attempts, control, customers, operations, orders

if TYPE_CHECKING:
    from tests.support.rig import Rig

State = Mapping[str, Any]


@dataclass(frozen=True)
class Drift:
    """``call`` is the client's call that heals it, ``held`` target and calls of the fault that makes it late. ``effects`` lists what
    receivers did about it (nothing that they refused, nothing that changed nothing), ``refused`` what a receiver's journal says of a late
    call. ``confirm``: sweeps that see it before one acts. ``phases``: further transactions of its repair that may be stopped in."""

    action: Action
    make: Callable[[Rig], Awaitable[None]]
    healed: Callable[[Rig, State], Awaitable[bool]]
    effects: Callable[[Rig, State], list[Any]]
    call: str = ""
    held: tuple[str, str] = ("", "")
    refused: Callable[[Rig, State], list[Any]] = lambda rig, state: []
    restore: Callable[[Rig], Awaitable[None]] | None = None
    confirm: int = 1
    expected: int = 1
    #: At Proxmox a late call may arrive as well, if it converges.
    convergent: bool = False


# ── what receivers wrote down ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bridge(state: State, method: str, name: str) -> list[Any]:
    return [c for c in state["parts"]["bridge"]["calls"] if c["method"] == method and c["name"] == name]


def _done(calls: list[Any]) -> list[Any]:
    return [c for c in calls if c["effect"]]


def _fenced(calls: list[Any]) -> list[Any]:
    return [c for c in calls if c["status"] == 412]


def _updates(state: State, name: str) -> list[Any]:
    return [u for u in state["parts"]["dns"]["updates"] if name in u["names"]]


def _changed(updates: list[Any]) -> list[Any]:
    return [u for u in updates if u["changed"]]


def _unmet(updates: list[Any]) -> list[Any]:
    """Refused by their prerequisite."""
    return [u for u in updates if u["rcode"] in ("NXRRSET", "YXRRSET", "NXDOMAIN", "YXDOMAIN")]


def _agent(state: State, vmid: int, path: str) -> list[Any]:
    return [c for c in state["parts"]["agents"]["agents"][str(vmid)]["calls"] if c["path"] == path]


def _registered(state: State, name: str) -> bool:
    return any(s["name"] == name for s in state["parts"]["bridge"]["servers"])


# ── the edge ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _deregistered(rig: Rig) -> None:
    await rig.lab("POST", "/bridge/deregister", name=rig.game.name)


async def _ghost(rig: Rig) -> None:
    await rig.lab("POST", "/bridge/register", name="ghost", address="127.20.9.9", port=25565)


async def _unpublished(rig: Rig) -> None:
    await rig.lab("POST", "/dns", op="delete", name=rig.fqdn, rtype="A")


async def _stale(rig: Rig) -> None:
    await rig.deps.dns.publish("gone.play.example", [Record("gone.play.example", "A", "192.0.2.7")], "no-such-server", [])


async def _is_registered(rig: Rig, state: State) -> bool:
    return _registered(state, rig.game.name)


async def _no_ghost(rig: Rig, state: State) -> bool:
    return not _registered(state, "ghost")


async def _is_published(rig: Rig, state: State) -> bool:
    return any(r["name"] == rig.fqdn and r["rtype"] == "A" for r in state["parts"]["dns"]["records"])


async def _nothing_stale(rig: Rig, state: State) -> bool:
    return not any(r["name"].endswith("gone.play.example") for r in state["parts"]["dns"]["records"])


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
    return agent["state"] == "stopped" and not _registered(state, rig.game.name)


async def _dev_down(rig: Rig, state: State) -> bool:
    return bool(state["containers"][str(rig.dev.vmid)]["status"] == "stopped")


async def _started_again(rig: Rig, server_id: str, customer_id: str) -> None:
    async with rig.database.write() as tx:
        await accounts.resume(tx, customer_id, "test")
    await rig.ended(await rig.order(server_id, OperationKind.START))


async def _game_again(rig: Rig) -> None:
    await _started_again(rig, rig.game.id, rig.game.customer_id)


async def _dev_again(rig: Rig) -> None:
    await _started_again(rig, rig.dev.id, rig.dev.customer_id)


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
    return _done(_agent(state, rig.game.vmid, "/game/restart"))


DRIFTS: Mapping[str, Drift] = {
    "register": Drift(
        Action.REGISTER_PROXY,
        _deregistered,
        _is_registered,
        lambda rig, s: _done(_bridge(s, "PUT", rig.game.name)),
        "proxy.register",
        ("bridge", "PUT *"),
        lambda rig, s: _fenced(_bridge(s, "PUT", rig.game.name)),
    ),
    "deregister": Drift(
        Action.DEREGISTER_PROXY,
        _ghost,
        _no_ghost,
        lambda rig, s: _done(_bridge(s, "DELETE", "ghost")),
        "proxy.deregister",
        ("bridge", "DELETE *"),
        lambda rig, s: _fenced(_bridge(s, "DELETE", "ghost")),
        confirm=2,
    ),
    "publish": Drift(
        Action.PUBLISH_DNS,
        _unpublished,
        _is_published,
        lambda rig, s: _changed(_updates(s, rig.fqdn)),
        "dns.publish",
        ("dns", "UPDATE *"),
        lambda rig, s: _unmet(_updates(s, rig.fqdn)),
    ),
    "withdraw": Drift(
        Action.WITHDRAW_DNS,
        _stale,
        _nothing_stale,
        lambda rig, s: _changed(_updates(s, "gone.play.example")),
        "dns.withdraw",
        ("dns", "UPDATE *"),
        lambda rig, s: _unmet(_updates(s, "gone.play.example")),
        confirm=2,
    ),
    "stop": Drift(
        Action.SUSPEND_WORKLOAD,
        _game_suspended,
        _game_at_rest,
        lambda rig, s: _done(_agent(s, rig.game.vmid, "/game/stop")),
        "agents.stop",
        ("agents", "POST *"),
        lambda rig, s: _fenced(_agent(s, rig.game.vmid, "/game/stop")),
        _game_again,
    ),
    "shutdown": Drift(
        Action.SUSPEND_WORKLOAD,
        _dev_suspended,
        _dev_down,
        lambda rig, s: [w for w in s["parts"]["proxmox"]["writes"] if f"/{rig.dev.vmid}/" in w["call"]],
        "proxmox.shutdown",
        ("proxmox", "POST *shutdown"),
        restore=_dev_again,
        convergent=True,
    ),
    "orphaned": Drift(Action.REVOKE_AND_RESUBMIT, _orphaned, _ended, _restarts),
    "unsubmitted": Drift(Action.SUBMIT_ATTEMPT, _unsubmitted, _ended, _restarts, "engine.submit"),
}
