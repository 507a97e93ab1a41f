"""The fleet at the beginning: nodes, customers, servers that run and are published, in the database and in the world alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert

from flows.act.policy import policy_of
from flows.clients.dns_names import OWNER_LABEL, owner_text
from flows.decide.wanted import fqdn, wanted_records
from flows.domain.node import Node
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.domain.sources import Record, Registration
from flows.settings import Settings
from flows.simulate.world import World
from flows.state import customers, nodes, servers
from flows.state import tables as t
from flows.state.database import Database, Tx
from flows.state.ids import new_id

#: Flavor → template, on every node alike.
TEMPLATES = {"fabric": 9000, "paper": 9001, "vanilla": 9002, "dev": 9010}
FIRST_VMID = 10_000
#: Servers per node, per customer, and between two developer containers.
PER_NODE, PER_CUSTOMER, DEV_EVERY = 25, 5, 8
PLAN = "simulated"


def settings(changed: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
    """The product's defaults, but for what must be said, for the looks that nobody needs every second of a month, and for ``changed`` (by
    group)."""
    groups: dict[str, dict[str, Any]] = {
        "network": {"pool": "10.20.0.0/16", "gateway": "10.20.0.1"},
        "ansible": {"forwarding_secret": "of the simulation"},
        "proxy": {"player_address": "203.0.113.10"},
        "timing": {"ready_poll_s": 3.0},
    }
    for group, values in (changed or {}).items():
        groups[group] = groups.get(group, {}) | dict(values)
    return Settings.model_validate(groups)


def node_names(count: int) -> list[str]:
    return [f"pve{n + 1}" for n in range(max(2, -(-count // PER_NODE)))]


async def found(database: Database, world: World, config: Settings, count: int) -> list[Server]:
    """Writes it all; returns the servers, oldest first."""
    made: list[Server] = []
    names = node_names(count)
    world.nodes.update(dict.fromkeys(names, True))
    async with database.write() as tx:
        await tx.execute(insert(t.plan_limits).values(plan=PLAN, servers=10_000, memory_mb=10**9, disk_gb=10**9, backups=7))
        for name in names:
            await nodes.put(tx, Node(name, 512_000, 20_000, 128, "local-zfs", "vmbr0", TEMPLATES))
        owners = [(await customers.add(tx, f"customer-{n + 1}", PLAN)).id for n in range(-(-count // PER_CUSTOMER))]
        made.extend([await _server(tx, n, owners[n // PER_CUSTOMER], names) for n in range(count)])
    policy = policy_of(config)
    for server in made:
        dev = server.ctype is ContainerType.DEV
        machine = world.born(server.vmid, server.node, server.id, "0" * 8, server.name, server.address, dev=dev)
        machine.state = machine.state.RUNNING
        if not dev:
            world.registrations[server.name] = Registration(server.name, server.address, server.game_port)
            name = fqdn(server, policy)
            world.zone[name] = wanted_records(server, policy)
            world.zone[OWNER_LABEL + name] = (Record(OWNER_LABEL + name, "TXT", owner_text(server.id)),)
    world.zone_version += 1
    return made


async def _server(tx: Tx, n: int, owner: str, names: Sequence[str]) -> Server:
    dev = n % DEV_EVERY == DEV_EVERY - 1
    vmid, address = FIRST_VMID + n, f"10.20.{(n + 11) // 250}.{(n + 11) % 250 + 1}"
    server = Server(
        id=new_id(), customer_id=owner, name=f"{'dev' if dev else 'game'}{n + 1:03d}", ctype=ContainerType.DEV if dev else ContainerType.GAME,
        flavor="dev" if dev else "paper", version="1" if dev else "1.21.1", memory_mb=2048, cores=2, disk_gb=10, node=names[n % len(names)],
        storage="local-zfs", bridge="vmbr0", template_vmid=TEMPLATES["dev" if dev else "paper"], vmid=vmid, address=address,
        state=ServerState.ACTIVE, desired=Desired.RUNNING, desired_by="customer", edge=Edge.WITHDRAWN if dev else Edge.OPEN, token_version=1,
        created_at=tx.now, activated_at=tx.now,
    )  # fmt: skip
    await servers.create(tx, server)
    await tx.execute(insert(t.vmids).values(vmid=vmid, state="reserved", server_id=server.id, since=tx.now, until=None, reason=""))
    number = int.from_bytes(bytes(int(part) for part in address.split(".")), "big")
    row = {"address": address, "number": number, "state": "reserved", "server_id": server.id, "since": tx.now, "until": None}
    await tx.execute(insert(t.addresses).values(row))
    return server
