"""Which backends the proxy may hold: the answer to a proxy that starts with nothing, called by the control listener; and which of them a
bulk repair must leave as they are, called by ``act``."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, select

from flows.domain.finding import BrakeScope
from flows.domain.readiness import may_publish
from flows.domain.server import MAY_RUN, ContainerType, Edge, ServerState
from flows.state import brakes, leases
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.epochs import NAME
from flows.state.observations import to_observation


@dataclass(frozen=True, slots=True)
class Backend:
    """A game server that players may be sent to. ``lease_token`` is the highest handed out for it: the proxy refuses lower ones."""

    name: str
    address: str
    port: int
    lease_token: int


@dataclass(frozen=True, slots=True)
class Backends:
    """A complete answer; ``epoch`` is the last sweep's (0: none ever ran), so that an older answer is recognised."""

    epoch: int
    backends: tuple[Backend, ...]


async def left_alone(tx: Tx) -> frozenset[str]:
    """Names of servers that a bulk repair must not touch: somebody holds their lease, or a person paused automation for them. A proxy that
    starts gets them all the same: it would serve nobody else."""
    held = {lease.subject for lease in await leases.list_(tx) if lease.blocks(tx.now)}
    paused = await brakes.active(tx)
    hosts = {brake.target for brake in paused if brake.scope is BrakeScope.HOST}
    held |= {brake.target for brake in paused if brake.scope is BrakeScope.SERVER}
    s = t.servers.c
    rows = await tx.execute(select(s.id, s.name, s.node).where(s.state != ServerState.DELETED.value))
    return frozenset(row.name for row in rows if row.id in held or row.node in hosts)


async def backends(tx: Tx) -> Backends:
    """Active, unsuspended, edge open, and proven ready a moment ago. Raises Unreachable: never an empty list for want of an answer."""
    s = t.servers.c
    query = (
        select(s.name.label("server"), s.address, s.game_port, t.leases.c.token, t.observations)
        .join(t.customers, t.customers.c.id == s.customer_id)
        .join(t.observations, t.observations.c.server_id == s.id)
        .join(t.leases, t.leases.c.subject == s.id, isouter=True)
        .where(
            and_(
                s.state == ServerState.ACTIVE.value,
                s.ctype == ContainerType.GAME.value,
                s.edge == Edge.OPEN.value,
                t.customers.c.billing.in_([b.value for b in MAY_RUN]),
            )
        )
        .order_by(s.name)
    )
    rows = (await tx.execute(query)).all()
    epoch = (await tx.execute(select(t.epochs.c.epoch).where(t.epochs.c.name == NAME))).scalar_one_or_none()
    ready = (r for r in rows if may_publish(to_observation(r), tx.now))
    return Backends(epoch or 0, tuple(Backend(r.server, r.address, r.game_port, r.token or 0) for r in ready))
