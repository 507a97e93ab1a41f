"""Customers and tokens: ``customers add|list|suspend|resume``, ``token create|revoke``, and ``hosts add``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli import output, session
from flows.domain.node import Node
from flows.domain.server import BillingState
from flows.errors import BadInput, Conflict, NotFound
from flows.state import audit, customers, nodes, tokens
from flows.state.customers import Customer
from flows.state.database import Tx


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Who owns servers.", no_args_is_help=True)
    group.command("add")(add)
    group.command("list")(list_)
    group.command("suspend")(suspend)
    group.command("resume")(resume)
    app.add_typer(group, name="customers")
    token = typer.Typer(help="Credentials of the API: shown once, hashed at rest.", no_args_is_help=True)
    token.command("create")(create)
    token.command("revoke")(revoke)
    app.add_typer(token, name="token")
    hosts = next(g.typer_instance for g in app.registered_groups if g.name == "hosts")
    assert hosts is not None
    hosts.command("add")(add_host)


async def _customer(tx: Tx, given: str) -> Customer:
    found = await customers.by_name(tx, given) or await customers.get(tx, given)
    if found is None:
        raise NotFound(f"customer {given}", why="there is none", remedy="zlh customers list")
    return found


def add(name: str, plan: Annotated[str, typer.Option(help="plan with its limits")] = "basic", json: output.Json = False) -> None:
    """Add a customer."""
    who = session.actor()

    async def change(tx: Tx) -> Customer:
        if await customers.get_plan(tx, plan) is None:
            raise BadInput("--plan", plan, why="is no plan", remedy="use basic or pro")
        customer = await customers.add(tx, name, plan)
        await audit.append(tx, who, "customer.add", f"customer:{customer.id}", detail={"name": name, "plan": plan})
        return customer

    customer = session.write(change)
    output.data(asdict(customer)) if json else output.text(f"{customer.name}  {customer.id}  plan {customer.plan}")


def list_(json: output.Json = False) -> None:
    """List customers."""
    rows = [asdict(c) for c in session.read(customers.list_)]
    output.lines(rows) if json else output.table(rows, ("name", "plan", "billing", "id"), "no customers: zlh customers add NAME")


def suspend(name: str, yes: output.Yes = False) -> None:
    """Suspend a customer: nothing new starts, and the next sweep stops what runs."""
    output.confirm(f"suspend {name}? its servers are stopped", yes)
    _billing(name, BillingState.SUSPENDED)


def resume(name: str) -> None:
    """Let a suspended customer start servers again."""
    _billing(name, BillingState.ACTIVE)


def _billing(name: str, to: BillingState) -> None:
    who = session.actor()

    async def change(tx: Tx) -> None:
        customer = await _customer(tx, name)
        await customers.set_billing(tx, customer.id, to, who)

    session.write(change)
    output.text(f"{name} is {to.value}")


def create(
    customer: Annotated[str | None, typer.Option("--customer", help="name or id")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="for operators: may act for every customer")] = False,
    expires: Annotated[str, typer.Option("--expires", help="90d, or never")] = "90d",
    label: Annotated[str, typer.Option(help="what it is for")] = "",
) -> None:
    """Create a token and show it, once."""
    if (customer is None) == (not admin):
        raise BadInput("--customer, --admin", "none or both", why="exactly one is needed", remedy="zlh token create --customer NAME")
    who = session.actor()

    async def change(tx: Tx) -> str:
        owner = (await _customer(tx, customer)).id if customer is not None else None
        end = None if expires == "never" else tx.now + int(output.seconds(expires, "--expires") * 1000)
        token_id, plaintext = await tokens.create(tx, customer_id=owner, role="admin" if admin else "customer", label=label or who, expires_at=end)
        await audit.append(tx, who, "token.create", f"token:{token_id}", detail={"role": "admin" if admin else "customer", "customer": customer})
        return plaintext

    output.text(session.write(change))


def revoke(token: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Revoke a token at once."""
    who = session.actor()

    async def change(tx: Tx) -> str:
        token_id = output.by_prefix([k.id for k in await tokens.list_(tx)], token, "token")
        if not await tokens.revoke(tx, token_id):
            raise Conflict(f"token {token}", why="it was revoked before")
        await audit.append(tx, who, "token.revoke", f"token:{token_id}")
        return token_id

    output.text(f"revoked {session.write(change)}")


def add_host(
    name: str,
    memory: Annotated[int, typer.Option(help="memory, MiB")],
    disk: Annotated[int, typer.Option(help="disk for containers, GiB")],
    cores: Annotated[int, typer.Option(help="cores")],
    storage: Annotated[str, typer.Option(help="Proxmox storage for root disks")],
    template: Annotated[list[str], typer.Option(help="FLAVOR=VMID, as often as there are flavors")],
    bridge: Annotated[str, typer.Option(help="bridge of the containers")] = "vmbr0",
    closed: Annotated[bool, typer.Option("--closed", help="takes no new servers")] = False,
) -> None:
    """Add or change a Proxmox node that takes servers."""
    templates: dict[str, int] = {}
    for entry in template:
        flavor, equals, vmid = entry.partition("=")
        if not equals or not flavor or not vmid.isdigit():
            raise BadInput("--template", entry, why="is not FLAVOR=VMID", remedy="for example --template fabric=9000")
        templates[flavor] = int(vmid)
    who = session.actor()

    async def change(tx: Tx) -> None:
        await nodes.put(tx, Node(name, memory, disk, cores, storage, bridge, templates, not closed))
        await audit.append(tx, who, "host.put", f"host:{name}", detail={"memory_mb": memory, "disk_gb": disk, "open": not closed})

    session.write(change)
    output.text(f"{name} takes {'no new' if closed else 'new'} servers")
