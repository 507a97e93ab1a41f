"""The one transaction that creates a server: quota, placement, name, address, VMID, operation and audit line, or nothing of them.

Called by the front door alone, in ``Database.write()``. The customer's row is locked first, then every node's in the order of their names:
two orders of one customer cannot pass one quota, two orders cannot get one last gigabyte, and the order of locks is the same for all.
What an order is refused for is a :class:`~flows.errors.Conflict` with a kind: ``nonce_used``, ``intake_closed``, ``billing``, ``quota``,
``no_capacity``, ``name_taken``; a flavor that no node has is BadInput, an unknown customer NotFound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select, update

from flows.domain.intake import Accepted, Creation, Ranges
from flows.domain.node import NodeUsage
from flows.domain.operation import OperationKind, Queue
from flows.domain.placement import Placement, PlacementRequest
from flows.domain.server import MAY_RUN, Desired, Edge, Server, ServerState
from flows.errors import Conflict, NotFound
from flows.state import addresses, audit, control, customers, nodes, operations, servers, vmids
from flows.state import tables as t
from flows.state.customers import Customer
from flows.state.database import Tx
from flows.state.ids import new_id
from flows.state.operations import Nonce

Place = Callable[[PlacementRequest, Sequence[NodeUsage]], Placement]


def _used(what: ColumnElement[Any]) -> Any:
    """Over the customer's counted servers: everything but deleted and cleanly failed ones."""
    s = t.servers.c
    return select(func.coalesce(what, 0)).where(s.customer_id == bindparam("customer"), s.state.in_(servers.COUNTED)).scalar_subquery()


_O = t.operations.c
_ASKED = (_O.customer_id == bindparam("customer"), _O.ctype == bindparam("ctype"), _O.nonce == bindparam("nonce"))
#: Everything that the rules ask of the database, in one statement that is built once: the plan's limits, what is used of them, whether
#: intake is closed, and whether the order is a repeat. Asked under the customer's lock.
_FACTS = select(
    t.plan_limits.c.servers,
    t.plan_limits.c.memory_mb,
    t.plan_limits.c.disk_gb,
    _used(func.count()).label("used_servers"),
    _used(func.sum(t.servers.c.memory_mb)).label("used_memory_mb"),
    _used(func.sum(t.servers.c.disk_gb)).label("used_disk_gb"),
    select(t.control.c.value).where(t.control.c.name == control.INTAKE_CLOSED).scalar_subquery().label("closed"),
    select(_O.id).where(*_ASKED).scalar_subquery().label("repeats"),
).where(t.plan_limits.c.plan == bindparam("plan"))


async def create(tx: Tx, order: Creation, *, place: Place, ranges: Ranges) -> Accepted:
    """Records the order, or finds it recorded already. Nothing is written when it raises."""
    customer = await locked_customer(tx, order.customer_id)
    facts = await _facts(tx, customer, order.ctype.value, order.nonce)
    if facts.repeats is not None:
        repeated = await repeat_of(tx, order)
        assert repeated is not None  # just seen, in this very transaction
        return repeated
    _check_rules(customer, facts, order.memory_mb, order.disk_gb, order.token_id)
    where = place(PlacementRequest(order.flavor, order.memory_mb, order.disk_gb, order.cores), await nodes.usage(tx, lock=True))
    return await _record(tx, order, where, ranges)


async def repeat_of(tx: Tx, order: Creation) -> Accepted | None:
    """The order that this one repeats, whatever has become of it. Raises Conflict ``nonce_used`` if the nonce belongs to a different one."""
    known = await operations.by_nonce(tx, order.customer_id, order.ctype, order.nonce)
    if known is None:
        return None
    operation, body_hash = known
    if body_hash != order.body_hash:
        raise Conflict(
            "request_nonce",
            why="it belongs to an order with another body",
            remedy="send a new nonce for a new order",
            kind="nonce_used",
            facts={"operation_id": operation.id},
        )
    server = await servers.get(tx, operation.server_id)
    assert server is not None  # rows of servers are never deleted
    return Accepted(operation, server, deduplicated=True)


async def reserve_again(tx: Tx, server: Server, *, place: Place, ranges: Ranges) -> None:
    """Gives a cleanly failed server a place, a new VMID and a new address, under the rules of :func:`create`, and raises what it raises.
    The caller holds the customer's row (:func:`locked_customer`) and moves the server to ``creating``, which takes its name again."""
    customer = await locked_customer(tx, server.customer_id)
    _check_rules(customer, await _facts(tx, customer, "", ""), server.memory_mb, server.disk_gb)
    where = place(PlacementRequest(server.flavor, server.memory_mb, server.disk_gb, server.cores), await nodes.usage(tx, lock=True))
    vmid, address = await _identity(tx, server.id, ranges)
    place_of = {"node": where.node, "storage": where.storage, "bridge": where.bridge, "template_vmid": where.template_vmid}
    await tx.execute(update(t.servers).where(t.servers.c.id == server.id).values(vmid=vmid, address=address, **place_of))


async def locked_customer(tx: Tx, customer_id: str) -> Customer:
    """The customer, whose row stays locked until the commit. Raises NotFound."""
    customer = await customers.get(tx, customer_id, lock=True)
    if customer is None:
        raise NotFound(f"customer {customer_id}", remedy="zlh customers list")
    return customer


async def _facts(tx: Tx, customer: Customer, ctype: str, nonce: str) -> Any:
    values = {"plan": customer.plan, "customer": customer.id, "ctype": ctype, "nonce": nonce}
    return (await tx.execute(_FACTS, values)).one()


def _check_rules(customer: Customer, facts: Any, memory_mb: int, disk_gb: int, token_id: str | None = None) -> None:
    """Intake open (or to this token), account in order, plan not exhausted."""
    if facts.closed and (token_id is None or facts.closed != control.pass_of(token_id)):
        raise Conflict("intake", why="no orders are taken at the moment", remedy="try again later", kind="intake_closed")
    if customer.billing not in MAY_RUN:
        why = f"the account is {customer.billing}"
        raise Conflict("billing", why=why, remedy="settle the account", kind="billing", facts={"billing": customer.billing.value})
    for resource, taken, wanted, limit in (
        ("servers", facts.used_servers, 1, facts.servers),
        ("memory_mb", int(facts.used_memory_mb), memory_mb, facts.memory_mb),
        ("disk_gb", int(facts.used_disk_gb), disk_gb, facts.disk_gb),
    ):
        if taken + wanted > limit:
            raise Conflict(
                "quota",
                why=f"plan {customer.plan} allows {limit} {resource}; {taken} in use, {wanted} more asked for",
                remedy="delete a server or change the plan",
                kind="quota",
                facts={"plan": customer.plan, "resource": resource, "used": taken, "limit": limit, "requested": wanted},
            )


async def _identity(tx: Tx, server_id: str, ranges: Ranges) -> tuple[int, str]:
    """Both ranges exhausted count as no capacity: nothing that the customer could send would change it."""
    try:
        vmid = await vmids.reserve(tx, server_id, ranges.vmid_first, ranges.vmid_last)
        address = await addresses.reserve(tx, server_id, ranges.pool, ranges.address_first, ranges.gateway)
    except Conflict as error:
        raise Conflict(error.what, why=error.why, remedy=error.remedy, kind="no_capacity") from error
    return vmid, address


async def _record(tx: Tx, order: Creation, where: Placement, ranges: Ranges) -> Accepted:
    server_id = new_id()
    vmid, address = await _identity(tx, server_id, ranges)
    server = await servers.create(
        tx,
        Server(
            id=server_id, customer_id=order.customer_id, name=order.name, ctype=order.ctype, flavor=order.flavor, version=order.version,
            memory_mb=order.memory_mb, cores=order.cores, disk_gb=order.disk_gb, node=where.node, storage=where.storage, bridge=where.bridge,
            template_vmid=where.template_vmid, vmid=vmid, address=address, state=ServerState.CREATING, desired=Desired.RUNNING,
            desired_by=order.actor, edge=Edge.WITHDRAWN, token_version=1, created_at=tx.now, runtimes=order.runtimes, code_server=order.code_server,
        ),
    )  # fmt: skip
    operation = await operations.create(
        tx,
        server=server,
        kind=OperationKind.PROVISION,
        queue=Queue.PROVISIONING,
        actor=order.actor,
        params={},
        deadline_ms=ranges.operation_ms,
        nonce=Nonce(order.nonce, order.body_hash),
    )
    detail = {"name": server.name, "ctype": server.ctype.value, "flavor": server.flavor, "version": server.version, "vmid": vmid, "node": server.node}
    await audit.append(tx, order.actor, "server.create", f"server:{server_id}", server_id=server_id, operation_id=operation.id, detail=detail)
    return Accepted(operation, server)
