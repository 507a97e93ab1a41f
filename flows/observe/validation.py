"""Looks for ``zlh validate``: readers in, a report out. M1 reads the database and Proxmox, M3 everybody who is at work. Nothing is written.

What gives no answer is said as such; a rule runs only on what is known.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from flows.decide.validate import containers, topology
from flows.decide.validate import database as rules
from flows.domain.known import Known, Source, Unknown
from flows.domain.ports import ProxmoxReader
from flows.domain.records import Limits, Records, ServerRecord
from flows.domain.sources import ProxmoxView
from flows.domain.topology import Expected, Peer, host_of
from flows.domain.validation import Part, Problem, Report, Unlooked
from flows.errors import NotFound
from flows.observe.source import ask
from flows.settings import Settings
from flows.state import migrate, records, visitors
from flows.state.database import Database, ping

T = TypeVar("T")
#: Absences proven at once, and at most: each takes Proxmox several calls.
PROOFS_AT_ONCE, PROOFS = 4, 50


class _Worker(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def online(self) -> bool: ...


@dataclass(frozen=True)
class Lookers:
    """``clients`` None: no Redis is configured."""

    settings: Settings
    database: Database
    proxmox: ProxmoxReader
    workers: Callable[[], Awaitable[Sequence[_Worker]]]
    clients: Callable[[], Awaitable[Sequence[Peer]]] | None
    here: str


def limits_of(settings: Settings) -> Limits:
    """Settings as the rules' thresholds."""
    timing = settings.timing
    return Limits(
        stuck_ms=int(timing.stuck_s * 1000),
        operation_ms=int(timing.operation_s * 1000),
        grace_ms=int(settings.watchdog.intervals * timing.sweep_s * 1000),
    )


async def database(look: Lookers) -> Report:
    """M1. With tables of another revision nothing else is read of them."""
    limit = look.settings.timing.observe_s
    at = await ask(_revision(look.database), limit)
    if isinstance(at, Unknown):
        return _blind(Part.DATABASE, "the database", at, "check ZLH_DATABASE__URL; zlh doctor")
    other = rules.schema(at.value, migrate.head())
    if other is not None:
        rest = Unlooked(Part.DATABASE, "every other rule", "the tables are another revision's", other.remedy)
        return Report((other,), (rest,), (f"schema at {at.value or 'nothing'}",))
    limits = limits_of(look.settings)
    began = await ask(ping(look.database), limit)
    if isinstance(began, Unknown):
        return _blind(Part.DATABASE, "the database", began, "check ZLH_DATABASE__URL; zlh doctor")
    # Proxmox before the database: what is only just being made or unmade is told apart by the rows' own times.
    view = await ask(look.proxmox.view(), limit)
    give_up_ms = int(look.settings.notify.give_up_s * 1000)
    known = await ask(_records(look, give_up_ms, limits.stuck_ms), limit)
    if isinstance(known, Unknown):
        return _blind(Part.DATABASE, "the database", known, "zlh doctor")
    found = list(rules.problems(known.value, limits))
    unlooked: list[Unlooked] = []
    looked = [
        f"schema at {at.value}",
        f"{len(known.value.servers)} servers, {len(known.value.operations)} live operations, {len(known.value.leases)} leases",
    ]
    if isinstance(view, Unknown):
        unlooked.append(Unlooked(Part.DATABASE, "records without container and the reverse", view.reason, "zlh doctor"))
    else:
        more, unproven = await _containers(look, known.value, view.value, began.value)
        found += more
        unlooked += unproven
        looked.append(f"{len(view.value.containers)} containers")
    return Report(tuple(found), tuple(unlooked), tuple(looked))


async def _there(db: Database) -> None:
    """Raises NotFound for a file that is not there: looking must not make it."""
    if db.sqlite and not await asyncio.to_thread(Path(str(db.url.database)).is_file):
        raise NotFound(f"database {db.url.database}", why="there is no such file")


async def _revision(db: Database) -> str | None:
    await _there(db)
    async with db.read() as tx:
        return await migrate.revision_of(tx)


async def _records(look: Lookers, give_up_ms: int, stuck_ms: int) -> Records:
    async with look.database.read() as tx:
        return await records.load(tx, give_up_ms=give_up_ms, stuck_ms=stuck_ms)


async def _containers(look: Lookers, known: Records, view: ProxmoxView, looked_at: int) -> tuple[list[Problem], list[Unlooked]]:
    """The list alone proves no absence: each candidate is asked for by its number. One that is there after all is looked for once more: it may
    have come since, or its number is another guest's, of which the list shows no container."""
    candidates = containers.missing(known, view, looked_at)
    gate = asyncio.Semaphore(PROOFS_AT_ONCE)

    async def prove(server: ServerRecord) -> tuple[str, Source[bool]]:
        async with gate:
            return server.id, await ask(look.proxmox.proven_absent(server.vmid), look.settings.timing.observe_s)

    proofs: Mapping[str, Source[bool]] = dict(await asyncio.gather(*(prove(s) for s in candidates[:PROOFS])))
    absent = {id_ for id_, proof in proofs.items() if isinstance(proof, Known) and proof.value}
    unlooked = [
        Unlooked(Part.DATABASE, f"whether ct {s.vmid} of {s.name} exists", proof.reason, f"zlh explain {s.name}")
        for s in candidates
        if isinstance(proof := proofs.get(s.id), Unknown)
    ]
    places = {s.id: await ask(look.proxmox.where(s.vmid), look.settings.timing.observe_s) for s in candidates if proofs.get(s.id) == Known(False)}
    others = {id_: place.value[1] for id_, place in places.items() if isinstance(place, Known) and place.value and place.value[0] != "lxc"}
    for s in candidates:
        place = places.get(s.id)
        if isinstance(place, Unknown) or place == Known(None):
            why = place.reason if isinstance(place, Unknown) else "Proxmox lists no such guest, and does not prove its absence"
            unlooked.append(Unlooked(Part.DATABASE, f"whether ct {s.vmid} of {s.name} exists", why, f"zlh explain {s.name}"))
    if len(candidates) > PROOFS:
        why = f"Proxmox lists no container of {len(candidates)} servers; of the first {PROOFS} {len(absent)} are proven absent"
        unlooked.append(
            Unlooked(Part.DATABASE, f"{len(candidates) - PROOFS} more containers", why, "look whether Proxmox lost its guests: zlh doctor")
        )
    return list(containers.problems(known, view, looked_at, absent, others)), unlooked


async def workers(look: Lookers) -> Report:
    """M3: the engine's workers, Redis' clients, the database's connections, and the holders that rows name."""
    settings, limit = look.settings, look.settings.timing.observe_s
    window_ms = int(settings.watchdog.intervals * settings.timing.sweep_s * 1000)

    async def visitors_of() -> tuple[list[Peer] | None, list[Peer]]:
        await _there(look.database)
        async with look.database.read() as tx:
            return await visitors.connections(tx), await visitors.holders(tx, window_ms)

    online, visiting = await asyncio.gather(ask(look.workers(), limit), ask(visitors_of(), limit))
    clients: Source[Sequence[Peer]] | None = None if look.clients is None else await ask(look.clients(), limit)
    peers: list[Peer] = []
    unlooked: list[Unlooked] = []
    looked: list[str] = []
    if isinstance(online, Unknown):
        unlooked.append(Unlooked(Part.WORKERS, "the engine's workers", online.reason, "zlh doctor"))
    else:
        at_work = [Peer(topology.WORKER, w.name, host=host_of(w.name)) for w in online.value if w.online]
        peers += at_work
        looked.append(f"{len(at_work)} of the engine's workers online")
    if isinstance(clients, Unknown):
        unlooked.append(Unlooked(Part.WORKERS, "Redis' clients", clients.reason, "check ZLH_REDIS__URL"))
    elif clients is not None:
        peers += clients.value
        looked.append(f"{len(clients.value)} Redis clients")
    if isinstance(visiting, Unknown):
        unlooked.append(Unlooked(Part.WORKERS, "the database's connections and holders", visiting.reason, "zlh doctor"))
    else:
        connections, holders = visiting.value
        peers += [*(connections or ()), *holders]
        looked.append("the database is a file of this machine" if connections is None else f"{len(connections)} database connections")
        looked.append(f"{len(holders)} holders of the epoch, leases and messages")
    located = [_located(peer, settings) for peer in peers]
    return Report(tuple(topology.problems(located, expected_of(settings, look.here))), tuple(unlooked), tuple(looked))


def expected_of(settings: Settings, here: str) -> Expected:
    """The machines of the setting; none named: this one alone."""
    hosts: dict[str, set[str]] = {}
    for entry in settings.topology.hosts:
        name, _, address = entry.partition("=")
        hosts.setdefault(name, set()).add(str(ipaddress.ip_address(address)))
    chosen = {name: frozenset(addresses) for name, addresses in hosts.items()} or {here: frozenset()}
    return Expected(chosen, here, settings.topology.workers)


def _located(peer: Peer, settings: Settings) -> Peer:
    """A loopback address is that of whatever machine the server runs on: this one, where our URL says so too, else the URL's."""
    url = {"Redis client": settings.redis.url, "database connection": settings.database.url}.get(peer.role)
    if url is None or not visitors.loopback(peer.address):
        return peer
    server = server_of(url.get_secret_value())
    here = visitors.loopback(server)
    return Peer(peer.role, peer.name, peer.host, "" if here else server, local=here)


def server_of(url: str) -> str:
    """The host of a URL, without its credential."""
    host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]


def _blind(part: Part, what: str, why: Unknown, remedy: str) -> Report:
    return Report(unlooked=(Unlooked(part, what, why.reason, remedy),))
