"""One controlled creation on a live system (M5): ordered as a customer orders, looked at from every side, and deleted without trace.

Called by ``zlh validate provisioning`` and the flow ``post-migration``. Promises: whatever fails, the deletion is ordered; what a killed
predecessor left is deleted first, and nothing that somebody else ordered; one at a time, by a lease, so that none takes another's server for
left over. It writes only through the front door, and two rows of its own: that lease, and the customer for whom it orders.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from flows.act.deps import Deps
from flows.act.heartbeat import Heartbeat
from flows.act.policy import policy_of
from flows.decide.validate import trial as rules
from flows.decide.wanted import SRV_PREFIX, fqdn
from flows.domain.lease import LeaseKind
from flows.domain.operation import Operation, OperationState, engine_key
from flows.domain.server import Server, ServerState
from flows.domain.trial import Left, Made
from flows.domain.validation import Part, Problem, Report, Unlooked
from flows.errors import AutomationError, Conflict, Temporary
from flows.state import audit, control, customers, leases, operations, servers, sweeps, trials
from flows.state.database import Tx
from flows.state.trials import Rows

#: Begins the names of servers that this makes; then come the first digits of the order's nonce.
PREFIX = "validate-"
_OURS = re.compile(rf"{PREFIX}([0-9a-f]{{8}})")
_NONCE = re.compile(r"[0-9a-f]{32}")
#: The lease under which one validation at a time orders and deletes.
LEASE = "validate:provisioning"
CREATE = "/api/servers/create"
#: How often an order is repeated whose answer was lost: the nonce makes that safe.
TRIES = 5


class FrontDoor(Protocol):
    """One call of the API in the name of whoever validates. Raises as :func:`flows.clients.own_api.call` does."""

    async def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Wish:
    """What is ordered, and for whom; the customer is made if there is none of that name."""

    customer: str = "zlh-validation"
    ctype: str = "game"
    flavor: str = "fabric"
    version: str = "1.21.4"
    memory_mb: int = 2048
    cores: int = 1
    disk_gb: int = 10


async def run(deps: Deps, door: FrontDoor, wish: Wish, say: Callable[[str], None]) -> Report:
    """Raises Conflict where the front door refuses the order; then nothing was made. Raises Temporary where it gives no answer at all; what was
    made then is deleted by the next validation. Raises Busy while another one is under way, Fenced where another took its lease."""
    async with _alone(deps):
        return await _run(deps, door, wish, say)


@asynccontextmanager
async def _alone(deps: Deps) -> AsyncIterator[None]:
    """Holds the lease, which a killed validation leaves to expire. A database that does not answer must not end the process: what was ordered is
    still to be deleted."""
    timing = deps.settings.timing
    async with deps.database.write() as tx:
        lease = await leases.take(tx, LEASE, LeaseKind.MAINTENANCE, deps.holder, int(timing.lease_s * 1000), reason="one controlled creation")
    try:
        async with Heartbeat(deps.database, timing, LEASE, lease.token, lambda: None):
            yield
    finally:
        with suppress(AutomationError):  # lost, or no database: it expires
            async with deps.database.write() as tx:
                await leases.release(tx, LEASE, lease.token)


async def _run(deps: Deps, door: FrontDoor, wish: Wish, say: Callable[[str], None]) -> Report:
    customer_id = await _customer(deps, wish.customer)
    await _clear(deps, door, customer_id, say)
    began = time.monotonic()
    server, operation_id, body = await _order(deps, door, wish, customer_id)
    say(f"ordered {server.name}: operation {operation_id}")
    try:
        # Once more, as an impatient client sends it: it must be answered with the first one's operation.
        second = await _patiently(deps, door, "POST", CREATE, body)
        report = await _judge(deps, server, operation_id, str(second["operation"]["id"]) == operation_id)
    finally:
        gone = await _delete(deps, door, server, say)
    problems = [*report.problems, *gone.problems]
    lines = [*report.looked, *gone.looked, f"in {time.monotonic() - began:.0f} s"]
    return Report(tuple(problems), report.unlooked + gone.unlooked, tuple(lines))


async def _customer(deps: Deps, name: str) -> str:
    async with deps.database.write() as tx:
        known = await customers.by_name(tx, name)
        if known is None:
            known = await customers.add(tx, name, "basic")
            await audit.append(tx, "system:validate", "customer.add", f"customer:{known.id}", detail={"name": name})
        return known.id


async def _clear(deps: Deps, door: FrontDoor, customer_id: str, say: Callable[[str], None]) -> None:
    """Deletes what a killed validation left. Raises Conflict if that does not work: its traces would be taken for this one's."""
    async with deps.database.read() as tx:
        leftover = [s for s in await servers.list_(tx, customer_id=customer_id) if await _ours(tx, s)]
    for server in leftover:
        say(f"{server.name} was left by an interrupted validation: deleting it")
        report = await _delete(deps, door, server, say)
        if not report.clean:
            why = (*(p.says for p in report.problems), *(u.why for u in report.unlooked))[0]
            raise Conflict(f"left-over {server.name}", why=why, remedy=f"zlh delete {server.id} --yes, then validate again")


async def _ours(tx: Tx, server: Server) -> bool:
    """Whether a validation ordered it: a customer may call a server the same, and does not make its nonce begin like its name."""
    named = _OURS.fullmatch(server.name)
    if named is None:
        return False
    nonce = await trials.nonce_of(tx, server.id)
    return _NONCE.fullmatch(nonce) is not None and nonce.startswith(named[1])


async def _order(deps: Deps, door: FrontDoor, wish: Wish, customer_id: str) -> tuple[Server, str, Mapping[str, Any]]:
    """The server, its operation, and what was sent."""
    nonce = uuid.uuid4().hex
    body = {
        "ctype": wish.ctype, "name": PREFIX + nonce[:8], "flavor": wish.flavor, "version": wish.version, "memory_mb": wish.memory_mb,
        "cores": wish.cores, "disk_gb": wish.disk_gb, "request_nonce": nonce, "customer_id": customer_id,
    }  # fmt: skip
    first = await _patiently(deps, door, "POST", CREATE, body)
    operation_id, server_id = str(first["operation"]["id"]), str(first["server"]["id"])
    async with deps.database.read() as tx:
        server = await servers.get(tx, server_id)
    assert server is not None  # the answer follows the commit
    return server, operation_id, body


async def _patiently(deps: Deps, door: FrontDoor, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Again where no answer came."""
    for left in reversed(range(TRIES)):
        try:
            return await door(method, path, body)
        except Temporary as error:
            if not left:
                raise
            await asyncio.sleep(error.retry_after or deps.settings.timing.ready_poll_s)
    raise AssertionError("the last try returns or raises")


async def _judge(deps: Deps, server: Server, operation_id: str, deduplicated: bool) -> Report:
    """Waits for the end, then counts."""
    operation = await _ended(deps, operation_id)
    object_ = f"operations:{operation_id}"
    if operation is None or operation.state is not OperationState.SUCCEEDED:
        error = (operation.error or {}) if operation is not None else {}
        state = operation.state.value if operation is not None else "unknown"
        why = " · ".join(error[k] for k in ("what", "why") if error.get(k)) or "nothing took it up in time"
        says = f"the creation of {server.name} is {state}: {why}"
        return Report((Problem(Part.PROVISIONING, "not_created", (object_, f"servers:{server.id}"), says, f"zlh operations show {operation_id}"),))
    problems: list[Problem] = []
    unlooked: list[Unlooked] = []
    if not deduplicated:
        says = f"the same order twice became two operations for {server.name}"
        problems.append(Problem(Part.PROVISIONING, "not_deduplicated", (object_,), says, f"zlh operations --server {server.name}"))
    rows = await _delivered(deps, server, operation_id)
    containers, why = await _known(lambda: _containers(deps, server))
    if why:
        unlooked.append(Unlooked(Part.PROVISIONING, "containers", why, "zlh doctor"))
    engine_runs, why = await _known(lambda: _engine_runs(deps, operation_id, rows.attempts))
    if why:
        unlooked.append(Unlooked(Part.PROVISIONING, "runs in the engine", why, "zlh doctor"))
    found = Made(
        server.name, server.id, operation_id, rows.records, rows.operations, rows.claimed, engine_runs, 1 if containers is None else containers,
        rows.deployments, await _agent(deps, server), rows.alerts, rows.delivered,
    )  # fmt: skip
    problems += rules.made(found)
    counted = (
        f"{found.records} record", f"{found.operations} job", f"{containers if containers is not None else '?'} container",
        f"{found.deployments} agent execution", f"{found.alerts} alert",
    )  # fmt: skip
    return Report(tuple(problems), tuple(unlooked), counted)


async def _known(look: Callable[[], Any]) -> tuple[int | None, str]:
    """The number, or why it is not known."""
    try:
        return int(await look()), ""
    except AutomationError as error:
        return None, str(error)


async def _ended(deps: Deps, operation_id: str) -> Operation | None:
    """The operation at its end, or as it stands when it should long have ended."""
    timing = deps.settings.timing
    end = time.monotonic() + timing.operation_s + timing.stuck_s
    while True:
        async with deps.database.read() as tx:
            operation = await operations.get(tx, operation_id)
        if operation is None or operation.finished_at is not None or time.monotonic() >= end:
            return operation
        await asyncio.sleep(timing.ready_poll_s)


async def _delivered(deps: Deps, server: Server, operation_id: str) -> Rows:
    """The rows, once the alert was delivered, or should have been."""
    notify = deps.settings.notify
    end = time.monotonic() + 3 * (notify.drain_s + notify.timeout_s)
    while True:
        async with deps.database.read() as tx:
            rows = await trials.made(tx, server, operation_id)
        if rows.delivered or not rows.alerts or time.monotonic() >= end:
            return rows
        await asyncio.sleep(deps.settings.timing.ready_poll_s)


async def _containers(deps: Deps, server: Server) -> int:
    """Those that carry the server's tag, and those that have its number or host name without carrying it."""
    view = await deps.proxmox.view()
    ours = [c for c in view.containers.values() if f"zlh-srv-{server.id}" in c.tags or c.vmid == server.vmid or c.name == server.hostname]
    return len(ours) + (server.vmid in view.duplicate_vmids)


async def _engine_runs(deps: Deps, operation_id: str, attempts: tuple[int, ...]) -> int:
    async with deps.database.read() as tx:
        generation = await control.generation(tx)
    return len(await deps.engine.runs([engine_key(generation, operation_id, attempt) for attempt in attempts]))


async def _agent(deps: Deps, server: Server) -> str:
    """What is wrong with the agent's answer, if anything."""
    try:
        status = await deps.agents.status(server)
    except AutomationError as error:
        return str(error)
    if status.server_id != server.id:
        return f"it says that it is {status.server_id}"
    if status.restarts:
        return f"its workload was started {status.restarts + 1} times"
    return "" if status.ready else f"it is not ready: {status.state}"


async def _delete(deps: Deps, door: FrontDoor, server: Server, say: Callable[[str], None]) -> Report:
    """Orders the deletion, waits for its end, and looks for traces. What goes wrong is a problem, never an error: the creation's own report
    must not be lost."""
    timing = deps.settings.timing
    end = time.monotonic() + timing.operation_s + timing.stuck_s
    try:
        while True:
            await _patiently(deps, door, "DELETE", f"/api/servers/{server.id}")
            if await _gone(deps, server, end):
                break
            if time.monotonic() >= end:
                says = f"{server.name} was not deleted in {timing.operation_s + timing.stuck_s:g} s"
                return Report((Problem(Part.PROVISIONING, "not_deleted", (f"servers:{server.id}",), says, f"zlh delete {server.id} --yes"),))
        things = await _traces(deps, server)
    except AutomationError as error:
        why = f"{error.what} · {error.why}"
        return Report(unlooked=(Unlooked(Part.PROVISIONING, f"whether {server.name} is gone", why, f"zlh delete {server.id} --yes"),))
    say(f"{server.name} is deleted")
    return Report(tuple(rules.left(Left(tuple(things)))), (), () if things else ("deleted without trace",))


async def _gone(deps: Deps, server: Server, end: float) -> bool:
    """True once it is deleted; False when no operation lives that would delete it, or ``end`` has come: then the order is repeated."""
    while True:
        async with deps.database.read() as tx:
            known, live = await servers.get(tx, server.id), await operations.live_of(tx, server.id)
        if known is None or known.state is ServerState.DELETED:
            return True
        if live is None or time.monotonic() >= end:
            return False
        await asyncio.sleep(deps.settings.timing.ready_poll_s)


async def _rows_left(deps: Deps, server: Server) -> list[tuple[str, str, str]]:
    """An episode is closed by the sweep that sees its server gone: one that is open is a trace once a whole sweep has left it so, or none came
    in the time of several."""
    timing = deps.settings.timing
    end = time.monotonic() + deps.settings.watchdog.intervals * timing.sweep_s
    since: int | None = None
    while True:
        async with deps.database.read() as tx:
            found, last = await trials.left(tx, server), await sweeps.last_finished(tx)
            since = tx.now if since is None else since
        waits = any(object_.startswith("episodes:") for object_, _, _ in found)
        if not waits or (last is not None and last.started_at >= since) or time.monotonic() >= end:
            return found
        await asyncio.sleep(timing.ready_poll_s)


async def _traces(deps: Deps, server: Server) -> list[tuple[str, str, str]]:
    found = await _rows_left(deps, server)
    if not await deps.proxmox.proven_absent(server.vmid, template_vmid=server.template_vmid):
        what = f"ct {server.vmid} of {server.name} still exists"
        found.append((f"ct:{server.vmid}@{server.node}", what, f"on {server.node}: pct config {server.vmid}"))
    if server.name in (await deps.proxy.view()).registrations:
        found.append((f"proxy:{server.name}", f"the proxy still has {server.name}", "zlh reconcile"))
    name, zone = fqdn(server, policy_of(deps.settings)), await deps.dns.zone()
    for record in (name, SRV_PREFIX + name):
        if zone.records.get(record) or record in zone.owners:
            found.append((f"dns:{record}", f"DNS still has {record}", "zlh reconcile"))
    return found
