"""``zlh lease hold``: a server's lease for work that no engine runs (a plain ``ansible-playbook``), as long as its process lives.
``zlh lease release``: the end of one that was left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from flows.cli import output, session
from flows.cli.children import started_at
from flows.cli.listings import one
from flows.cli.nouns import BY_NAME
from flows.cli.orders import Server
from flows.domain.lease import BLOCKS_WHEN_EXPIRED, Lease, LeaseKind
from flows.errors import BadInput, Conflict, Fenced, Temporary
from flows.state import audit, leases, maintenance
from flows.state.database import Tx

#: Seconds between two looks at the process, and at the database while it does not answer.
LOOK_S = 0.2


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Hold a server's lease for work outside the engine, or free one that was left.", no_args_is_help=True)
    group.command("hold")(hold)
    group.command("release")(release)
    app.add_typer(group, name="lease")


def hold(
    server: Server,
    pid: Annotated[int, typer.Option(min=2, max=2**22, help="the process that does the work; its end gives the lease back")],
    kind: Annotated[Literal["patch", "backup", "restore"], typer.Option(help="what the work is")] = "patch",
    reason: Annotated[str, typer.Option(help="why; shown everywhere")] = "",
    end: Annotated[bool, typer.Option("--end", help="send TERM to the process's group when the lease is lost")] = False,
    json: output.Json = False,
) -> None:
    """Hold a server's lease while a process lives: no repair, no order and nobody else touches the server.

    Prints a line as soon as it holds. Exit 0 when the process has ended, 1 when the lease was lost. Killed, or stopped while the process
    lives, it leaves the lease to expire; the same person takes that up again."""
    begun = started_at(pid)
    if begun is None:
        raise BadInput("--pid", pid, why="there is no such process", remedy="give one that lives, as $$ in a shell")
    group, timing = os.getpgid(pid), session.settings().timing
    found, _ = one(BY_NAME["servers"], server, final=True)
    name, server_id, who = str(found["name"]), str(found["id"]), session.actor()
    ttl = int(timing.lease_s * 1000)
    taken = time.monotonic()
    lease = session.write(lambda tx: maintenance.hold(tx, server_id, LeaseKind(kind), who, ttl, reason))
    output.lines([output.program(asdict(lease))]) if json else output.text(f"{name} is held for {kind} while process {pid} lives")
    typer.get_text_stream("stdout").flush()
    try:
        with _stopping() as stop:
            _beat(lease, ttl, taken, (pid, begun), stop)
    except (Fenced, Temporary) as error:
        if end:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may be our group, too
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        raise Conflict(
            f"lease of {name}",
            why=f"lost: {error}",
            remedy=f"process {pid} {'was told to end' if end else 'must stop'}: look at the server before it goes on (zlh explain {name})",
        ) from error
    session.write(lambda tx: leases.release(tx, lease.subject, lease.token))


def release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a server, or a subject as listed by zlh leases")],
    yes: output.Yes = False,
    json: output.Json = False,
) -> None:
    """Free a lease that was left: an expired one of a patch or a restore, after you saw that what it did is whole or undone.

    Whoever held it is fenced. Your own is taken up again by ``zlh lease hold`` with the same kind."""
    found, _ = one(BY_NAME["leases"], name, final=True)
    subject, who = str(found["subject"]), session.actor()
    called = str(found["server"] or subject)

    async def look(tx: Tx) -> Lease:
        return _left(called, await leases.get(tx, subject), tx.now)

    seen = session.read(look)
    output.confirm(f"free the {seen.kind} of {called} that {seen.holder} left{f' ({seen.reason})' if seen.reason else ''}?", yes)

    async def change(tx: Tx) -> Lease:
        lease = _left(called, await leases.get(tx, subject), tx.now)
        await leases.revoke(tx, subject, seen=lease)
        server_id = subject if found["server"] else None
        detail = {"held_by": lease.holder, "kind": str(lease.kind), "reason": lease.reason}
        await audit.append(tx, who, "lease.release", f"lease:{subject}", server_id=server_id, detail=detail)
        return lease

    lease = session.write(change)
    output.data(output.program(asdict(lease))) if json else output.text(f"{called} is free: automation and orders may act on it again")


def _left(called: str, lease: Lease | None, now: int) -> Lease:
    """The lease, where it is one that nobody but a person frees. Raises Conflict."""
    what = f"lease of {called}"
    if lease is None or lease.holder is None:
        raise Conflict(what, why="nobody holds it", remedy="what is held: zlh leases")
    if lease.kind not in BLOCKS_WHEN_EXPIRED:
        raise Conflict(what, why=f"it is of {lease.kind}, which frees itself or is freed by the next sweep", remedy=f"zlh explain {called}")
    if not lease.expired(now):
        why = f"it is still held: by {lease.holder}, for {lease.kind}, until {output.moment(lease.expires_at)}"
        raise Conflict(what, why=why, remedy="wait until it has expired, or end its process")
    return lease


def _beat(lease: Lease, ttl: int, taken: float, process: tuple[int, str], stop: list[int]) -> None:
    """Renews until the process has ended. ``taken``: when it was asked for, by the monotonic clock.

    Raises Fenced when somebody else has it, Temporary when it could not be renewed until one margin before its end, and Conflict when it
    is stopped before the process ends: what is still being worked on is not given back.
    """
    timing = session.settings().timing
    renewed, due = taken, taken + timing.heartbeat_s
    while started_at(process[0]) == process[1]:
        if stop:
            raise Conflict(f"lease of {lease.subject}", why=f"stopped while process {process[0]} lives", remedy="it expires by itself; hold it again")
        if time.monotonic() >= due:
            began = time.monotonic()
            try:
                session.write(lambda tx: leases.renew(tx, lease.subject, lease.token, ttl))
                renewed, due = began, began + timing.heartbeat_s
            except Temporary:
                due = began + LOOK_S
                if time.monotonic() >= renewed + timing.lease_s - timing.margin_s:
                    raise
        time.sleep(LOOK_S)


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """The signals that asked to stop."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
