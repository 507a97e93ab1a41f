"""``/cluster`` and ``/pools``: the bulk answers. What the caller may not see is left out, without a word."""

from __future__ import annotations

from typing import Any

from flows.lab.config import StorageConfig
from flows.lab.faults import Mode
from flows.lab.proxmox import guest
from flows.lab.proxmox.errors import PveError
from flows.lab.proxmox.params import P
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.views import container_view, node_view
from flows.lab.world import LabContainer, LabNode

RECENT = 100


def silent_node(call: Call) -> str | None:
    """The node whose status daemon says nothing while the fault ``partial`` is armed: its guests' state is unknown."""
    return list(call.cluster.world.nodes)[-1] if call.fault(Mode.PARTIAL) is not None else None


def resource(call: Call, container: LabContainer, known: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": f"lxc/{container.vmid}", "type": "lxc", "node": container.node, **container_view(container)}
    entry["maxcpu"] = entry.pop("cpus")
    entry["template"] = int(container.template)
    for key in ("maxswap", "swap", "pid"):
        entry.pop(key, None)
    if not known:
        entry["status"] = "unknown"
        for key in ("cpu", "mem", "disk", "uptime", "netin", "netout", "diskread", "diskwrite", "lock"):
            entry.pop(key, None)
    return entry


def _guests(call: Call) -> list[dict[str, Any]]:
    silent = silent_node(call)
    nodes = call.cluster.world.nodes
    return [
        resource(call, c, known=nodes[c.node].online and c.node != silent)
        for c in sorted(call.cluster.world.containers.values(), key=lambda c: c.vmid)
        if call.identity.may(f"/vms/{c.vmid}", "VM.Audit")
    ]


def _storage(node: LabNode, storage: StorageConfig) -> dict[str, Any]:
    return {
        "id": f"storage/{node.name}/{storage.name}",
        "type": "storage",
        "node": node.name,
        "storage": storage.name,
        "plugintype": storage.kind,
        "content": ",".join(storage.content),
        "shared": int(storage.shared),
        "status": "available" if node.online else "unknown",
        "disk": 0,
        "maxdisk": node.disk_gb * guest.GIB,
    }


def _storages(call: Call) -> list[dict[str, Any]]:
    return [
        _storage(node, storage)
        for node in call.cluster.world.nodes.values()
        for storage in call.cluster.storages_on(node.name)
        if call.identity.may(f"/storage/{storage.name}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
    ]


@route("GET", "/cluster/resources", params={"type": P(enum=("vm", "storage", "node", "sdn"))}, partial=True)
async def resources(call: Call) -> Any:
    await call.cluster.refresh(call.cluster.world.containers.values())
    wanted = call.params.get("type")
    answer: list[dict[str, Any]] = []
    if wanted in (None, "vm"):
        answer += _guests(call)
    if wanted in (None, "node"):
        answer += [node_view(call.cluster, n, detailed=call.identity.may(f"/nodes/{n.name}", "Sys.Audit")) for n in call.cluster.world.nodes.values()]
    if wanted in (None, "storage"):
        answer += _storages(call)
    return answer


@route("GET", "/cluster/status", ("/", "Sys.Audit"))
async def status(call: Call) -> Any:
    cluster = call.cluster
    nodes: list[dict[str, Any]] = [
        {
            "id": f"node/{n.name}",
            "type": "node",
            "name": n.name,
            "nodeid": number if cluster.config.cluster is not None else 0,
            "ip": next((c.address for c in cluster.config.nodes if c.name == n.name), "127.0.0.1"),
            "online": int(n.online),
            "local": int(n.name == cluster.entrance),
            "level": "",
        }
        for number, n in enumerate(cluster.world.nodes.values(), 1)
    ]
    if cluster.config.cluster is None:
        return nodes
    head = {"id": "cluster", "type": "cluster", "name": cluster.config.cluster, "version": 1, "nodes": len(nodes), "quorate": int(call.quorate)}
    return [head, *nodes]


@route("GET", "/cluster/nextid", params={"vmid": P("integer", minimum=100, maximum=999_999_999)})
async def nextid(call: Call) -> Any:
    taken = call.cluster.world.containers
    asked = call.params.get("vmid")
    if asked is not None:
        if asked in taken:
            raise PveError.parameters(vmid=f"VM {asked} already exists")
        return asked
    return next(vmid for vmid in range(100, 1_000_000) if vmid not in taken)


@route("GET", "/cluster/tasks")
async def tasks(call: Call) -> Any:
    everything = call.identity.may("/", "Sys.Audit")
    seen = [t for t in call.cluster.tasks.newest_first() if everything or t.identity.auth_id == call.identity.auth_id]
    running = [t for t in seen if t.running]
    ended = [t for t in seen if not t.running][:RECENT]
    return [{**t.entry(), "saved": "0" if t.running else "1"} for t in running + ended]


@route("GET", "/pools", params={"poolid": P(), "type": P(enum=("qemu", "lxc", "storage"))})
async def pools(call: Call) -> Any:
    names = [p for p in call.cluster.config.pools if call.params.get("poolid") in (None, p)]
    return [{"poolid": p} for p in names if call.identity.may(f"/pool/{p}", "Pool.Audit")]


@route("GET", "/pools/{poolid}", ("/pool/{poolid}", "Pool.Audit"), params={"type": P(enum=("qemu", "lxc", "storage"))})
async def pool(call: Call) -> Any:
    name = call.params["poolid"]
    if name not in call.cluster.config.pools:
        raise PveError(500, f"no such pool '{name}'")
    members = [
        resource(call, c, known=True)
        for c in call.cluster.world.containers.values()
        if c.pool == name and call.identity.may(f"/vms/{c.vmid}", "VM.Audit")
    ]
    return {"poolid": name, "members": members}
