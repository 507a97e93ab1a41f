"""Customers and the limits of their plans. Called by the front door, ``zlh customers`` and billing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select, update

from flows.domain.server import MAY_RUN, BillingState
from flows.errors import BadInput, Conflict, NotFound
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id
from flows.state.unique import insert_unique
from flows.state.upsert import upsert

#: The longest name, in characters: the column's.
NAME_LENGTH = 64
_BY_ID = select(t.customers).where(t.customers.c.id == bindparam("of"))
_BY_ID_LOCKED = _BY_ID.with_for_update()
_BILLING = select(t.customers.c.billing).where(t.customers.c.id == bindparam("of"))


@dataclass(frozen=True, slots=True)
class Customer:
    """Who owns servers. ``created_at`` in ms."""

    id: str
    name: str
    plan: str
    billing: BillingState
    created_at: int


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """What a plan allows: counts, and sums of MB and GB over the customer's servers; ``backups`` kept per server."""

    plan: str
    servers: int
    memory_mb: int
    disk_gb: int
    backups: int


async def add(tx: Tx, name: str, plan: str) -> Customer:
    """A new customer in good standing. Raises BadInput (the name), Conflict (``name_taken``), NotFound (no such plan)."""
    _check_name(name)
    if await get_plan(tx, plan) is None:
        raise NotFound(f"plan {plan!r}", remedy="zlh customers add --plan basic|pro")
    customer = Customer(new_id(), name, plan, BillingState.ACTIVE, tx.now)
    row = {"id": customer.id, "name": name, "plan": plan, "billing": customer.billing.value, "created_at": tx.now}
    if not await insert_unique(tx, t.customers, row):
        remedy = "choose another, or use the one there is: zlh customers"
        raise Conflict(f"customer {name!r}", why="the name is taken", remedy=remedy, kind="name_taken", facts={"name": name})
    return customer


def _check_name(name: str) -> None:
    """What a person can read, type and pass on a command line, and every database can hold."""
    why = ""
    if not name.strip():
        why = "is empty"
    elif len(name) > NAME_LENGTH:
        why = f"is longer than {NAME_LENGTH} characters"
    elif not name.isprintable():
        why = "holds characters that do not print"
    elif name != name.strip():
        why = "begins or ends with a blank"
    if why:
        raise BadInput("name", name[: NAME_LENGTH + 1], why=why, remedy=f"1 to {NAME_LENGTH} characters that print, without blanks at the ends")


async def get(tx: Tx, customer_id: str, *, lock: bool = False) -> Customer | None:
    """``lock`` holds the row until the transaction ends, so that two creations count the quota one after the other."""
    row = (await tx.execute(_BY_ID_LOCKED if lock else _BY_ID, {"of": customer_id})).one_or_none()
    return None if row is None else _customer(row)


async def by_name(tx: Tx, name: str) -> Customer | None:
    row = (await tx.execute(select(t.customers).where(t.customers.c.name == name))).one_or_none()
    return None if row is None else _customer(row)


async def is_suspended(tx: Tx, customer_id: str) -> bool:
    """Whether its servers must not run: neither in good standing nor merely late. An unknown customer is."""
    row = (await tx.execute(_BILLING, {"of": customer_id})).scalar_one_or_none()
    return row is None or BillingState(row) not in MAY_RUN


async def list_(tx: Tx) -> list[Customer]:
    """All, by name."""
    return [_customer(r) for r in await tx.execute(select(t.customers).order_by(t.customers.c.name))]


async def set_billing(tx: Tx, customer_id: str, to: BillingState, actor: str) -> bool:
    """False: it was so already (nothing written). Raises NotFound. A change is audited."""
    done = await tx.execute(update(t.customers).where(t.customers.c.id == customer_id, t.customers.c.billing != to.value).values(billing=to.value))
    if done.rowcount == 1:
        await audit.append(tx, actor, "customer.billing", f"customer:{customer_id}", detail={"to": to.value})
        return True
    if await get(tx, customer_id) is None:
        raise NotFound(f"customer {customer_id}")
    return False


async def put_plan(tx: Tx, limits: PlanLimits) -> None:
    """Creates or changes a plan."""
    row = {"plan": limits.plan, "servers": limits.servers, "memory_mb": limits.memory_mb, "disk_gb": limits.disk_gb, "backups": limits.backups}
    await upsert(tx, t.plan_limits, [row], key="plan", update=["servers", "memory_mb", "disk_gb", "backups"])


async def get_plan(tx: Tx, plan: str) -> PlanLimits | None:
    row = (await tx.execute(select(t.plan_limits).where(t.plan_limits.c.plan == plan))).one_or_none()
    return None if row is None else PlanLimits(row.plan, row.servers, row.memory_mb, row.disk_gb, row.backups)


def _customer(row: Any) -> Customer:
    return Customer(row.id, row.name, row.plan, BillingState(row.billing), row.created_at)
