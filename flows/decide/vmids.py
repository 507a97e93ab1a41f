"""What is wrong with the numbers of containers: one of ours without a record, and one number twice. Shared by the checks and the sightings. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from flows.domain.known import Known
from flows.domain.server import ServerState
from flows.domain.snapshot import Snapshot
from flows.domain.sources import OUR_TAG, Container


def orphans(snapshot: Snapshot) -> Iterator[Container]:
    """Containers that carry our tag and have no record, by VMID. None while Proxmox is unknown.

    A failed server gave its number back, once its container was proven absent: what stands there now is nobody's. A template is no server.
    """
    if not isinstance(snapshot.proxmox, Known):
        return
    recorded = {s.vmid for s in snapshot.fleet.servers.values() if s.state is not ServerState.FAILED}
    for vmid, container in sorted(snapshot.proxmox.value.containers.items()):
        if OUR_TAG in container.tags and not container.template and vmid not in recorded:
            yield container


def subject_of(vmid: int) -> str:
    """A container without a record, as findings and sightings name it."""
    return f"container:{vmid}"


def marks(vmid: int, node: str, name: str, tags: frozenset[str]) -> Mapping[str, object]:
    """What a plan to destroy a container says of it. Made from the bulk answer, and again from the container itself right before the act.
    Not whether it runs: the act itself stops it, and may have to come again."""
    return {"vmid": vmid, "node": node, "name": name, "tags": sorted(tags)}


def shared_by_records(snapshot: Snapshot) -> dict[int, list[str]]:
    """VMID → names of the servers that all believe it theirs."""
    living = [s for s in snapshot.fleet.servers.values() if s.state is not ServerState.FAILED]
    often = Counter(s.vmid for s in living)
    return {vmid: sorted(s.name for s in living if s.vmid == vmid) for vmid, times in sorted(often.items()) if times > 1}


def shared_by_guests(snapshot: Snapshot) -> frozenset[int]:
    """VMIDs that two guests of the cluster have. A migration may show one twice for a moment."""
    return snapshot.proxmox.value.duplicate_vmids if isinstance(snapshot.proxmox, Known) else frozenset()
