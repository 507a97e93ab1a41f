"""Who has what: names, VMIDs and addresses of servers, and the reservations behind them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping

from flows.decide.validate import mend
from flows.domain.records import Records, Reservation, ServerRecord
from flows.domain.server import ServerState
from flows.domain.validation import Part, Problem

DAY_MS = 86_400_000
#: As :mod:`flows.state.addresses` numbers them.
_NUMBER = (1 << 62) - 1
#: States in which a server owns its name, VMID and address. A cleanly failed one gave them back.
OWNING = frozenset(s.value for s in ServerState) - {ServerState.DELETED.value, ServerState.FAILED.value}


def problem(rule: str, objects: tuple[str, ...], says: str, remedy: str) -> Problem:
    return Problem(Part.DATABASE, rule, objects, says, remedy)


def row(server: ServerRecord) -> str:
    return f"servers:{server.id}"


def owning(records: Records) -> list[ServerRecord]:
    return [s for s in records.servers if s.state in OWNING]


def problems(records: Records) -> Iterator[Problem]:
    yield from _duplicates(records, "duplicate_vmid", "VMID", lambda s: str(s.vmid), _one_of)
    yield from _duplicates(records, "duplicate_name", "name", lambda s: s.name, _one_of)
    yield from _duplicates(records, "duplicate_address", "address", lambda s: s.address, _one_of)
    yield from _names(records)
    vmids = {str(number): held for number, held in records.vmids.items()}
    yield from _reserved(records, "vmids", "vmid", vmids, lambda s: str(s.vmid))
    yield from _reserved(records, "addresses", "address", records.addresses, lambda s: s.address)


def _duplicates(
    records: Records, rule: str, what: str, of: Callable[[ServerRecord], str], remedy: Callable[[list[ServerRecord]], str]
) -> Iterator[Problem]:
    groups: dict[str, list[ServerRecord]] = {}
    for server in owning(records):
        groups.setdefault(of(server), []).append(server)
    for value, group in sorted(groups.items()):
        if len(group) > 1:
            names = ", ".join(f"{s.name} ({s.state}, ct {s.vmid})" for s in group)
            yield problem(rule, tuple(row(s) for s in group), f"{len(group)} servers have {what} {value}: {names}", remedy(group))


def _one_of(group: list[ServerRecord]) -> str:
    """Which of them is right stands in the container: its tag names its server."""
    holds = "; ".join(f"zlh maintenance on {s.id}" for s in group)
    return f"{holds}; on {group[0].node}: pct config {group[0].vmid} names its server in the tag zlh-srv-…; then of the others: zlh delete ID --yes"


def _names(records: Records) -> Iterator[Problem]:
    """``live_name`` carries the uniqueness of names: without it a name can be taken twice, left behind it is blocked for ever."""
    for server in records.servers:
        if server.state not in {s.value for s in ServerState}:
            continue  # reported as an illegal state
        wanted = server.name if server.state in OWNING else None
        if server.live_name != wanted:
            says = f"{server.name} is {server.state} and claims " + (f"the name {server.live_name}" if server.live_name else "no name")
            yield problem("name_claim", (row(server),), says, mend.update("servers", ("id", server.id), live_name=wanted))


def _reserved(records: Records, table: str, key: str, held: Mapping[str, Reservation], of: Callable[[ServerRecord], str]) -> Iterator[Problem]:
    """Every owning server holds its reservation; no reservation is held by a server that is gone."""
    owners = {s.id: s for s in owning(records)}
    for server in owners.values():
        thing = of(server)
        mine = held.get(thing)
        if mine is not None and mine.state == "reserved" and mine.server_id == server.id:
            continue
        now = "free" if mine is None else f"{mine.state}" + (f", of {mine.server_id}" if mine.server_id else "")
        yield problem(
            "released_in_use",
            (row(server), f"{table}:{thing}"),
            f"{server.name} is {server.state} and has {key} {thing}, which is {now}: it could be given to another server",
            _reserve(table, key, thing, server.id, records.now, new=mine is None),
        )
    for thing, mine in held.items():
        if mine.state == "reserved" and mine.server_id not in owners:
            whose = f"server {mine.server_id}, which is {mine.server_state}" if mine.server_state else f"no server ({mine.server_id})"
            yield problem(
                "reservation_without_server",
                (f"{table}:{thing}", *((f"servers:{mine.server_id}",) if mine.server_id else ())),
                f"{key} {thing} is reserved by {whose}",
                mend.update(table, (key, _typed(key, thing)), state="quarantined", until=records.now + DAY_MS),
            )


def _reserve(table: str, key: str, thing: str, server_id: str, now: int, *, new: bool) -> str:
    if not new:
        return mend.update(table, (key, _typed(key, thing)), state="reserved", server_id=server_id, until=None)
    if table == "addresses":
        number = int(ipaddress.ip_address(thing)) & _NUMBER
        return mend.insert(table, address=thing, number=number, state="reserved", server_id=server_id, since=now)
    return mend.insert(table, vmid=int(thing), state="reserved", server_id=server_id, since=now, reason="")


def _typed(key: str, thing: str) -> int | str:
    return int(thing) if key == "vmid" else thing
