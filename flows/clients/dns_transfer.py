"""Where a zone transfer is collected. dnspython checks the protocol (signatures, both SOAs, the end); its ``Zone`` would check and copy
every record once more, which takes seconds at ten thousand names. Used by :mod:`dns` alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import dns.name
import dns.rdataclass
import dns.rdataset
import dns.transaction


class Collected:
    """The writer's part that :class:`dns.xfr.Inbound` uses. It raises where no end came, so ``sets`` is whole when it returns."""

    def __init__(self) -> None:
        self.sets: dict[dns.name.Name, list[dns.rdataset.Rdataset]] = {}

    def add(self, name: dns.name.Name, rdataset: dns.rdataset.Rdataset) -> None:
        self.sets.setdefault(name, []).append(rdataset)

    def replace(self, name: dns.name.Name, rdataset: dns.rdataset.Rdataset) -> None:
        self.sets[name] = [s for s in self.sets.get(name, []) if s.rdtype != rdataset.rdtype] + [rdataset]

    def commit(self) -> None:
        """The end was there, and signed."""

    def rollback(self) -> None:
        self.sets.clear()


class Transfer(dns.transaction.TransactionManager):
    """One transfer of one zone."""

    def __init__(self, origin: dns.name.Name) -> None:
        self._origin = origin
        self._collected = Collected()

    def reader(self) -> dns.transaction.Transaction:
        raise NotImplementedError("a transfer has no past")

    def writer(self, replacement: bool = False) -> dns.transaction.Transaction:
        self._collected = Collected()
        return self._collected  # type: ignore[return-value] # Inbound calls these methods alone

    def origin_information(self) -> tuple[dns.name.Name | None, bool, dns.name.Name | None]:
        return self._origin, False, self._origin

    def get_class(self) -> dns.rdataclass.RdataClass:
        return dns.rdataclass.IN

    def from_wire_origin(self) -> dns.name.Name | None:
        return None

    @property
    def sets(self) -> Mapping[dns.name.Name, list[dns.rdataset.Rdataset]]:
        """Record sets by absolute name; a name's set may come in several parts."""
        return self._collected.sets
