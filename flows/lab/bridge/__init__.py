"""The proxy bridge, as the Velocity plugin has it: registrations by HTTP, rehydrated from the product, lost on restart.

``backends`` holds and fences registrations, ``rehydrate`` pulls them, ``part`` is the HTTP face, ``front`` forwards players.
"""

from flows.lab.bridge.part import BridgePart, start

__all__ = ["BridgePart", "start"]
