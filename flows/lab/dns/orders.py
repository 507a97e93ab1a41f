"""What the control API orders behind the product's back: ``delete`` (``name``, ``rtype`` or all), ``replace`` and ``add`` (``name``, ``rtype``,
``value`` or a list of them, ``ttl``). The same for every name server of the lab.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.name
import dns.rdataclass
import dns.rdataset
import dns.rdatatype

from flows.lab.part import PartError


@dataclass(frozen=True)
class Order:
    """``values`` are in the zone file's form; relative names in them belong to the zone."""

    op: str
    name: dns.name.Name
    rtype: str | None
    values: tuple[str, ...]
    ttl: int

    def rdataset(self, origin: dns.name.Name) -> dns.rdataset.Rdataset:
        """Raises dnspython's errors for nonsense."""
        assert self.rtype is not None
        kind = dns.rdatatype.from_text(self.rtype)
        return dns.rdataset.from_text_list(dns.rdataclass.IN, kind, self.ttl, list(self.values), origin=origin, relativize=False)


def parse(op: str, arguments: Mapping[str, Any], origin: dns.name.Name) -> Order:
    """Raises PartError naming what is wrong."""
    if op not in ("delete", "replace", "add"):
        raise PartError(f"op: {op!r} is none of delete, replace, add")
    given = arguments.get("value", [])
    values = tuple(str(value) for value in given) if isinstance(given, (list, tuple)) else (str(given),)
    rtype = str(arguments["rtype"]) if arguments.get("rtype") else None
    text = str(arguments.get("name") or "")
    try:
        full = dns.name.from_text(text)  # full names of the zone may lack the final dot; anything else is relative to the zone
        name = full if full.is_subdomain(origin) else dns.name.from_text(text, origin)
        if not name.is_subdomain(origin):
            raise PartError(f"name: {name} is not in zone {origin}")
        if op != "delete" and (rtype is None or not values):
            raise PartError(f"{op} needs rtype and value")
        order = Order(op, name, rtype, values, int(arguments.get("ttl", 60)))
        if rtype is not None:
            dns.rdatatype.from_text(rtype)
        if op != "delete":
            order.rdataset(origin)
    except (dns.exception.DNSException, ValueError) as error:
        raise PartError(f"not a record: {error}") from error
    return order
