"""Customers and credentials: ``customers add|list|suspend|resume``, ``token create|list|revoke``, ``hosts add``, ``ca init|rotate``.

``zlh customers`` and ``zlh hosts`` load this module too: what it needs of :mod:`flows.state` is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import output, session
from flows.cli.commands import group_of
from flows.cli.listings import complete_customer, one, show_all
from flows.cli.nouns import BY_NAME
from flows.domain.node import Node
from flows.errors import BadInput, Conflict

if TYPE_CHECKING:
    from flows.state.customers import Customer
    from flows.state.database import Tx

CustomerName = Annotated[str, typer.Argument(metavar="CUSTOMER", help="name or id", autocompletion=complete_customer)]


def add_to(app: typer.Typer) -> None:
    names = {g.name for g in app.registered_groups}
    if "customers" in names:
        group = group_of(app, "customers")
        group.command("add")(add)
        group.command("list")(list_)
        group.command("suspend")(suspend)
        group.command("resume")(resume)
    if "hosts" in names:
        group_of(app, "hosts").command("add")(add_host)
    token = typer.Typer(help="Create and revoke credentials of the API: shown once, hashed at rest.", no_args_is_help=True)
    token.command("create")(create)
    token.command("list")(token_list)
    token.command("revoke")(revoke)
    app.add_typer(token, name="token")
    authority = typer.Typer(help="The certificate authority of the agents.", no_args_is_help=True)
    authority.command("init")(ca_init)
    authority.command("rotate")(ca_rotate)
    app.add_typer(authority, name="ca")


def add(name: str, plan: Annotated[str, typer.Option(help="plan with its limits")] = "basic", json: output.Json = False) -> None:
    """Add a customer."""
    from flows.state import audit, customers

    who = session.actor()

    async def change(tx: Tx) -> Customer:
        if await customers.get_plan(tx, plan) is None:
            raise BadInput("--plan", plan, why="is no plan", remedy="use basic or pro")
        customer = await customers.add(tx, name, plan)
        await audit.append(tx, who, "customer.add", f"customer:{customer.id}", detail={"name": name, "plan": plan})
        return customer

    customer = session.write(change)
    output.data(output.program(asdict(customer))) if json else output.text(f"{customer.name}  {customer.id}  plan {customer.plan}")


def list_(json: output.Json = False, utc: output.Utc = False, wide: output.Wide = False, limit: output.Limit = 200) -> None:
    """List customers, as bare ``zlh customers`` does."""
    show_all(BY_NAME["customers"], {}, json=json, utc=utc, wide=wide, limit=limit)


def token_list(json: output.Json = False, utc: output.Utc = False, wide: output.Wide = False, limit: output.Limit = 200) -> None:
    """List tokens that are not revoked, as ``zlh tokens`` does."""
    show_all(BY_NAME["tokens"], {}, json=json, utc=utc, wide=wide, limit=limit)


def suspend(name: CustomerName, yes: output.Yes = False, json: output.Json = False) -> None:
    """Suspend a customer: nothing new starts, and the next sweeps take its servers off proxy and DNS and stop them."""
    from flows.state import accounts

    found, _ = one(BY_NAME["customers"], name, final=True)
    output.confirm(f"suspend {found['name']}? its {found['servers']} servers are stopped", yes)
    _billing(found, accounts.suspend, "suspended", json)


def resume(name: CustomerName, json: output.Json = False) -> None:
    """Let a suspended customer start servers again."""
    from flows.state import accounts

    found, _ = one(BY_NAME["customers"], name)
    _billing(found, accounts.resume, "active", json)


def _billing(customer: dict[str, Any], change: Callable[[Tx, str, str], Awaitable[bool]], now: str, json: bool) -> None:
    who = session.actor()

    async def work(tx: Tx) -> bool:
        return await change(tx, str(customer["id"]), who)

    changed = session.write(work)
    if json:
        output.data({"id": customer["id"], "name": customer["name"], "billing": now, "changed": changed})
    else:
        output.text(f"{customer['name']} is {now}" + ("" if changed else " already"))


def create(
    customer: Annotated[str | None, typer.Option("--customer", help="name or id")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="for operators: may act for every customer")] = False,
    expires: Annotated[str, typer.Option("--expires", help="90d, or never")] = "90d",
    label: Annotated[str, typer.Option(help="what it is for")] = "",
    json: output.Json = False,
) -> None:
    """Create a token and show it, once."""
    from flows.state import audit, tokens

    if (customer is None) == (not admin):
        raise BadInput("--customer, --admin", "none or both", why="exactly one is needed", remedy="zlh token create --customer NAME")
    who, role = session.actor(), "customer" if customer is not None else "admin"
    owner = None if customer is None else str(one(BY_NAME["customers"], customer)[0]["id"])
    lasts = None if expires == "never" else int(output.seconds(expires, "--expires") * 1000)

    async def change(tx: Tx) -> dict[str, Any]:
        end = None if lasts is None else tx.now + lasts
        token_id, plaintext = await tokens.create(tx, customer_id=owner, role=role, label=label or who, expires_at=end)
        await audit.append(tx, who, "token.create", f"token:{token_id}", detail={"role": role, "customer": customer})
        return {"id": token_id, "role": role, "token": plaintext, "expires_at": output.iso(end)}

    made = session.write(change)
    output.data(made) if json else output.text(made["token"])


def revoke(token: Annotated[str, typer.Argument(metavar="ID", help="id, its beginning or its end")], json: output.Json = False) -> None:
    """Revoke a token: refused from the next request on, within a few seconds everywhere."""
    from flows.state import audit, tokens

    found, _ = one(BY_NAME["tokens"], token, final=True)
    who, token_id = session.actor(), str(found["id"])

    async def change(tx: Tx) -> None:
        if not await tokens.revoke(tx, token_id):
            raise Conflict(f"token {token_id}", why="it was revoked before", remedy="nothing to do")
        await audit.append(tx, who, "token.revoke", f"token:{token_id}")

    session.write(change)
    output.data({"id": token_id, "revoked": True}) if json else output.text(f"revoked {token_id}")


def add_host(
    name: str,
    memory: Annotated[int, typer.Option(help="memory, MiB", min=1)],
    disk: Annotated[int, typer.Option(help="disk for containers, GiB", min=1)],
    cores: Annotated[int, typer.Option(help="cores", min=1)],
    storage: Annotated[str, typer.Option(help="Proxmox storage for root disks")],
    template: Annotated[list[str], typer.Option(help="FLAVOR=VMID, as often as there are flavors")],
    bridge: Annotated[str, typer.Option(help="bridge of the containers")] = "vmbr0",
    closed: Annotated[bool, typer.Option("--closed", help="takes no new servers")] = False,
    json: output.Json = False,
) -> None:
    """Add or change a Proxmox node that takes servers."""
    from flows.state import audit, nodes

    templates: dict[str, int] = {}
    for entry in template:
        flavor, equals, vmid = entry.partition("=")
        if not equals or not flavor or not (vmid.isascii() and vmid.isdigit() and len(vmid) <= 9):
            raise BadInput("--template", entry, why="is not FLAVOR=VMID", remedy="for example --template fabric=9000")
        templates[flavor] = int(vmid)
    who = session.actor()

    node = Node(name, memory, disk, cores, storage, bridge, templates, not closed)

    async def change(tx: Tx) -> None:
        await nodes.put(tx, node)
        await audit.append(tx, who, "host.put", f"host:{name}", detail={"memory_mb": memory, "disk_gb": disk, "open": not closed})

    session.write(change)
    output.data(asdict(node)) if json else output.text(f"{name} takes {'no new' if closed else 'new'} servers")


def ca_init(json: output.Json = False) -> None:
    """Make the authority in ZLH_AGENT__CA_DIR; keeps one that is there."""
    from flows.clients.ca import CertificateAuthority

    directory = session.settings().agent.ca_dir
    CertificateAuthority(directory).ensure()
    output.data({"ca_dir": str(directory)}) if json else output.text(f"ready: {directory / 'ca.pem'}")


def ca_rotate(yes: output.Yes = False, json: output.Json = False) -> None:
    """Sign new agents' certificates with a new key; certificates of the old one stay trusted until they expire."""
    from flows.clients.ca import CertificateAuthority

    directory = session.settings().agent.ca_dir
    output.confirm(f"new key for the authority in {directory}? agents keep their certificates until they are deployed again", yes)
    CertificateAuthority(directory).rotate()
    output.data({"ca_dir": str(directory)}) if json else output.text(
        f"rotated: {directory / 'ca.pem'}; deploy the agents again to replace their leaves"
    )
