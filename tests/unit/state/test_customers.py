"""Customers, plans, nodes and host keys: plain records."""

from __future__ import annotations

from typing import Any

import pytest

from flows.domain.node import Node, NodeUsage
from flows.domain.server import BillingState, ServerState
from flows.errors import BadAnswer, Conflict, NotFound
from flows.state import audit, customers, host_keys, nodes, servers
from flows.state.customers import PlanLimits
from flows.state.database import Database

ED25519 = "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
OTHER = "AAAAC3NzaC1lZDI1NTE5AAAAIAMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMD"
RSA = "AAAAB3NzaC1yc2EAAAAgAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="


async def test_add_and_find(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        made = await customers.add(tx, "Ada", "basic")
        assert (made.billing, made.created_at) == (BillingState.ACTIVE, clock.now)
        assert await customers.get(tx, made.id, lock=True) == await customers.by_name(tx, "Ada") == made
        assert await customers.list_(tx) == [made]
        with pytest.raises(Conflict) as refused:
            await customers.add(tx, "Ada", "pro")
        assert refused.value.kind == "name_taken"
        with pytest.raises(NotFound, match="gold"):
            await customers.add(tx, "Bob", "gold")
        assert await customers.get(tx, "nope") is None


@pytest.mark.parametrize(("billing", "suspended"), [("active", False), ("past_due", False), ("suspended", True), ("canceled", True)])
async def test_billing_is_changed_once_and_audited(timed: Database, billing: str, suspended: bool) -> None:
    async with timed.write() as tx:
        made = await customers.add(tx, "Ada", "basic")
        changed = await customers.set_billing(tx, made.id, BillingState(billing), "stripe")
        assert changed == (billing != "active")
        assert not await customers.set_billing(tx, made.id, BillingState(billing), "stripe")
        assert await customers.is_suspended(tx, made.id) == suspended
        assert len(await audit.list_(tx, action="customer.billing")) == int(changed)
    with pytest.raises(NotFound):
        async with timed.write() as tx:
            await customers.set_billing(tx, "nope", BillingState.ACTIVE, "stripe")


async def test_an_unknown_customer_may_not_run_anything(timed: Database) -> None:
    async with timed.read() as tx:
        assert await customers.is_suspended(tx, "nope")


async def test_plans_are_created_and_changed(timed: Database) -> None:
    async with timed.write() as tx:
        for limits in (PlanLimits("gold", 1, 2, 3, 4), PlanLimits("gold", 5, 6, 7, 8)):
            await customers.put_plan(tx, limits)
            assert await customers.get_plan(tx, "gold") == limits
        assert await customers.get_plan(tx, "lead") is None


async def test_nodes_are_replaced_by_name(timed: Database) -> None:
    async with timed.write() as tx:
        for node in (Node("pve1", 1, 2, 3, "zfs", "vmbr0", {"fabric": 9000}), Node("pve1", 4, 5, 6, "lvm", "vmbr1", {}, open=False)):
            await nodes.put(tx, node)
            assert await nodes.list_(tx, lock=True) == [node]


async def test_usage_of_nodes_counts_what_is_promised(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        one, two = await make.node(tx, "pve1"), await make.node(tx, "pve2")
        await make.server(tx, memory_mb=1_000, disk_gb=10, cores=2)
        await make.server(tx, memory_mb=2_000, disk_gb=20, cores=4)
        for state in (ServerState.FAILED, ServerState.DELETED):
            await servers.set_state(tx, (await make.server(tx)).id, state, "t")
        assert await nodes.usage(tx, lock=True) == [NodeUsage(one, 3_000, 30, 6, 2), NodeUsage(two)]


async def test_host_keys_are_replaced_and_forgotten(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        await host_keys.put(tx, server.id, server.address, {"ssh-ed25519": ED25519, "ssh-rsa": RSA})
        await host_keys.put(tx, server.id, server.address, {"ssh-ed25519": f"ssh-ed25519 {OTHER} root@c1"})
        for wrong in (f"ssh-rsa {RSA}", RSA, "AAAA", "", "ssh-ed25519", f"ssh-ed25519 {OTHER[:-8]}!!!\n127.0.0.1 {OTHER}"):
            with pytest.raises(BadAnswer, match="host key ssh-ed25519"):
                await host_keys.put(tx, server.id, server.address, {"ssh-ed25519": wrong})
        assert await host_keys.get(tx, server.id) == {"ssh-ed25519": OTHER}
        assert [(k.server_id, k.address) for k in await host_keys.list_(tx)] == [(server.id, server.address)]
        await host_keys.forget(tx, server.id)
        assert await host_keys.get(tx, server.id) == {}
