"""The agents: one listener per running container that has one, on the container's own address. ``flows.lab`` starts them.

``workload`` is what an agent supervises, ``routes`` its HTTP face, ``part`` opens and closes listeners as the world changes.
"""

from flows.lab.agents.part import AgentsPart, start

__all__ = ["AgentsPart", "start"]
