"""``zlh vmids free``: a person looked at a burnt VMID. The listing itself is one of :mod:`flows.cli.listings`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import output, session
from flows.cli.commands import group_of
from flows.cli.listings import one
from flows.cli.nouns import BY_NAME
from flows.errors import Conflict

if TYPE_CHECKING:
    from flows.state.database import Tx
    from flows.state.vmids import VmidRow


def add_to(app: typer.Typer) -> None:
    if "vmids" in {group.name for group in app.registered_groups}:
        group_of(app, "vmids").command("free")(free)


def free(number: Annotated[str, typer.Argument(metavar="VMID", help="a burnt one")], yes: output.Yes = False, json: output.Json = False) -> None:
    """Hand a burnt VMID out again: after you saw that no guest of the cluster has it. One that is still taken is burnt again."""
    from flows.state import audit, vmids

    row, _ = one(BY_NAME["vmids"], number)
    vmid, who = int(row["vmid"]), session.actor()
    if row["state"] != vmids.Reservation.BURNT:
        raise _not_burnt(vmid, str(row["state"]))
    output.confirm(f"hand VMID {vmid} out again? it was {row['reason']}", yes)

    async def change(tx: Tx) -> VmidRow:
        burnt = {held.vmid: held for held in await vmids.list_(tx, state=vmids.Reservation.BURNT)}
        if not await vmids.unburn(tx, vmid):
            raise _not_burnt(vmid, "something else by now")
        await audit.append(tx, who, "vmid.free", f"vmid:{vmid}", detail={"reason": burnt[vmid].reason})
        return burnt[vmid]

    freed = session.write(change)
    output.data(output.program(asdict(freed))) if json else output.text(f"VMID {vmid} is free again")


def _not_burnt(vmid: int, state: str) -> Conflict:
    return Conflict(f"VMID {vmid}", why=f"it is not burnt, but {state}", remedy="zlh vmids --state burnt lists those that are")
