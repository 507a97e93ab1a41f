"""Suspending and resuming a customer: the account and all its servers, in one transaction. Called by the control API and ``zlh customers``."""

from __future__ import annotations

from flows.domain.server import BillingState, Desired, Edge, ServerState
from flows.state import customers, servers
from flows.state.database import Tx
from flows.state.intake import locked_customer


async def suspend(tx: Tx, customer_id: str, actor: str) -> bool:
    """Nobody is sent to the customer's servers from this commit on; the sweep stops what runs. A creation under way finishes without
    starting. False: it was so already. Raises NotFound."""
    await locked_customer(tx, customer_id)
    changed = await customers.set_billing(tx, customer_id, BillingState.SUSPENDED, actor)
    for server in await servers.list_(tx, customer_id=customer_id, state=ServerState.ACTIVE):
        await servers.set_state(tx, server.id, ServerState.SUSPENDED, actor)
        await servers.set_edge(tx, server.id, Edge.WITHDRAWN)
    return changed


async def resume(tx: Tx, customer_id: str, actor: str) -> bool:
    """The customer may start servers again. What should run is open to players as soon as it is ready. False: it was so already.
    Raises NotFound."""
    await locked_customer(tx, customer_id)
    changed = await customers.set_billing(tx, customer_id, BillingState.ACTIVE, actor)
    for server in await servers.list_(tx, customer_id=customer_id, state=ServerState.SUSPENDED):
        await servers.set_state(tx, server.id, ServerState.ACTIVE, actor)
        if server.desired is Desired.RUNNING:
            await servers.set_edge(tx, server.id, Edge.OPEN)
    return changed
