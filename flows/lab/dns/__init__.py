"""An authoritative name server on loopback, UDP and TCP: queries, RFC 2136 UPDATE with prerequisites, TSIG, AXFR.

``zone`` holds the records and applies updates, ``server`` speaks the protocol, ``part`` listens and plays faults.
"""

from flows.lab.dns.part import DnsPart, start

__all__ = ["DnsPart", "start"]
