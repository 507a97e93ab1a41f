"""An authoritative name server on loopback, UDP and TCP: queries, RFC 2136 UPDATE with prerequisites, TSIG, AXFR.

Fleet ``sim``: in-process. ``zone`` holds the records and applies updates, ``server`` speaks the protocol, ``part`` listens and plays faults.
Fleet ``lxc``: Knot DNS, a process of its own (``knot``), behind ``relay``, which plays the same faults on the wire.
"""

from flows.lab.config import LabConfig
from flows.lab.dns.knot import KnotPart
from flows.lab.dns.part import DnsPart
from flows.lab.faults import Faults
from flows.lab.world import World


async def start(config: LabConfig, world: World, faults: Faults) -> DnsPart | KnotPart:
    part = KnotPart(config.dns, faults, config.directory / "zlh-knot") if config.fleet == "lxc" else DnsPart(config.dns, faults)
    await part.open()
    return part


__all__ = ["DnsPart", "KnotPart", "start"]
