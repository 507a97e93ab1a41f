"""All sources at once into one frozen Snapshot. Bulk reads only: the number of calls grows with the number of sources."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from flows.domain.known import Known, Unknown
from flows.domain.operation import LIVE_STATES, engine_key
from flows.domain.ports import AgentReader, DnsReader, Engine, ProxmoxReader, ProxyReader
from flows.domain.server import Server
from flows.domain.snapshot import Snapshot
from flows.domain.sources import EngineView, ProxmoxView
from flows.observe import absence
from flows.observe import agents as agent_source
from flows.observe.source import ask
from flows.state import control, fleet, operations, servers
from flows.state.database import Database


@dataclass(frozen=True)
class Readers:
    """Readers of every source; no writer among them."""

    database: Database
    proxmox: ProxmoxReader
    agents: AgentReader
    proxy: ProxyReader
    dns: DnsReader
    engine: Engine


async def gather(readers: Readers, epoch: int, limit_s: float, *, repairs_ms: int = 3_600_000) -> Snapshot:
    """One look at everything. The database is read last, in one transaction with its clock, so that no lease looks expired only because
    the other sources took their time; ``repairs_ms`` is how far back
    repairs count. Raises where the database does not answer: without it there is nothing to sweep."""
    async with readers.database.read() as tx:
        everyone = await servers.list_(tx)
        live = await operations.list_(tx, state=tuple(LIVE_STATES))
        generation = await control.generation(tx)
    keys = [engine_key(generation, o.id, o.attempt) for o in live]
    probed = agent_source.worth_probing(everyone, live)
    proxmox, proxy, dns, engine, answers = await asyncio.gather(
        _proxmox(readers.proxmox, everyone, limit_s),
        ask(readers.proxy.view(), limit_s),
        ask(readers.dns.zone(), limit_s),
        ask(_engine(readers.engine, keys), limit_s),
        agent_source.probe(readers.agents, probed, limit_s),
    )
    async with readers.database.read() as tx:
        known = await fleet.load(tx, repairs_ms=repairs_ms)
        now = tx.now
    return Snapshot(
        now=now,
        epoch=epoch,
        generation=generation,
        fleet=known,
        proxmox=proxmox,
        proxy=proxy,
        dns=dns,
        engine=engine,
        agents=answers,
        distrusted=agent_source.distrusted(answers),
    )


async def _proxmox(proxmox: ProxmoxReader, everyone: list[Server], limit_s: float) -> Known[ProxmoxView] | Unknown:
    ends = time.monotonic() + limit_s
    answer = await ask(proxmox.view(), limit_s)
    return await absence.prove(proxmox, answer, everyone, max(0.0, ends - time.monotonic()))


async def _engine(engine: Engine, keys: list[str]) -> EngineView:
    return EngineView(runs=await engine.runs(keys))
