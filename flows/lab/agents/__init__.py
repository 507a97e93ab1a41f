"""The agents. Of records: one listener per running container that has one, on the container's own address; ``workload`` is what an agent
supervises, ``routes`` its HTTP face, ``part`` opens and closes listeners as the world changes. Of real containers: ``inside`` breaks and
mends the real ones. ``flows.lab`` starts either.
"""

from flows.lab.agents import part
from flows.lab.agents.inside import RealAgents
from flows.lab.agents.part import AgentsPart
from flows.lab.config import LabConfig
from flows.lab.faults import Faults
from flows.lab.world import World

__all__ = ["AgentsPart", "RealAgents", "start"]


async def start(config: LabConfig, world: World, faults: Faults) -> AgentsPart | RealAgents:
    """The part of the configured fleet."""
    return RealAgents(config, world) if config.fleet == "lxc" else await part.start(config, world, faults)
