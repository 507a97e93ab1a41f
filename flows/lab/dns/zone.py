"""One zone's records, and RFC 2136's rules for changing them. Pure: no sockets, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rrset
import dns.update

Name = dns.name.Name
Type = dns.rdatatype.RdataType
_T = dns.rdatatype
IN, ANY, NONE = dns.rdataclass.IN, dns.rdataclass.ANY, dns.rdataclass.NONE
#: Types that only a question may carry (RFC 2136, 3.4.1.2).
_META = frozenset({_T.ANY, _T.AXFR, _T.IXFR, _T.MAILA, _T.MAILB, _T.OPT, _T.TSIG})
#: Longest chain of aliases that is followed.
_CHAIN = 8


class Refusal(Exception):
    """An update that fails; nothing of it was applied."""

    def __init__(self, rcode: dns.rcode.Rcode) -> None:
        super().__init__(dns.rcode.to_text(rcode))
        self.rcode = rcode


@dataclass
class Answer:
    """What a question gets."""

    rcode: dns.rcode.Rcode
    answer: list[dns.rrset.RRset]
    authority: list[dns.rrset.RRset]


class Zone:
    """Records by name and type. Names are absolute; comparison ignores case, as DNS does."""

    def __init__(self, origin: str, *, ttl: int = 60) -> None:
        self.origin = dns.name.from_text(origin)
        self._nodes: dict[Name, dict[Type, dns.rdataset.Rdataset]] = {}
        server = dns.name.from_text("ns1", self.origin)
        self.put(self.origin, "SOA", [f"{server} {dns.name.from_text('hostmaster', self.origin)} 1 3600 600 86400 60"], ttl)
        self.put(self.origin, "NS", [str(server)], ttl)
        self.put(server, "A", ["127.0.0.1"], ttl)

    @property
    def serial(self) -> int:
        serial: int = self._soa().serial  # type: ignore[attr-defined] # dnspython makes the classes of record data at run time
        return serial

    def _soa(self) -> dns.rdata.Rdata:
        soa: dns.rdata.Rdata = self._nodes[self.origin][_T.SOA][0]
        return soa

    def soa_rrset(self) -> dns.rrset.RRset:
        return self._rrset(self.origin, self._nodes[self.origin][_T.SOA])

    def bump(self) -> None:
        """The next serial, by RFC 1982's arithmetic; zero is skipped."""
        following = (self.serial + 1) & 0xFFFFFFFF or 1
        old = self._nodes[self.origin][_T.SOA]
        self._nodes[self.origin][_T.SOA] = dns.rdataset.from_rdata(old.ttl, self._soa().replace(serial=following))

    def put(self, name: Name, rtype: str, values: list[str], ttl: int, *, add: bool = False) -> None:
        """Replaces (or extends) a record set without any protocol. Raises dnspython's errors for nonsense."""
        kind = _T.from_text(rtype)
        fresh = dns.rdataset.from_text_list(IN, kind, ttl, values, origin=self.origin, relativize=False)
        node = self._nodes.setdefault(name, {})
        if add and kind in node:
            for rdata in fresh:
                node[kind].add(rdata, ttl)
        else:
            node[kind] = fresh

    def remove(self, name: Name, rtype: str | None = None) -> int:
        """Drops a name's records of a type, or all of them; returns how many sets went. The apex keeps SOA and NS."""
        node = self._nodes.get(name, {})
        gone = [kind for kind in node if rtype is None or kind == _T.from_text(rtype)]
        gone = [kind for kind in gone if not (name == self.origin and kind in (_T.SOA, _T.NS))]
        for kind in gone:
            del node[kind]
        self._tidy(name)
        return len(gone)

    def records(self) -> Iterator[tuple[Name, int, dns.rdata.Rdata]]:
        """Every record but the SOA, in canonical order of names."""
        for name in sorted(self._nodes):
            for kind, rdataset in sorted(self._nodes[name].items()):
                if kind != _T.SOA:
                    for rdata in rdataset:
                        yield name, rdataset.ttl, rdata

    # --- queries -------------------------------------------------------------------------------------------------

    def resolve(self, name: Name, kind: Type) -> Answer:
        """An authoritative answer; aliases are followed inside the zone."""
        if not name.is_subdomain(self.origin):
            return Answer(dns.rcode.REFUSED, [], [])
        found: list[dns.rrset.RRset] = []
        for _ in range(_CHAIN):
            node = self._find(name)
            if node is None:
                exists = any(other.is_subdomain(name) for other in self._nodes)  # an empty non-terminal exists
                return Answer(dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN, found, [self.soa_rrset()])
            if kind == _T.ANY:
                return Answer(dns.rcode.NOERROR, [self._rrset(name, rdataset) for rdataset in node.values()], [])
            if kind in node:
                return Answer(dns.rcode.NOERROR, [*found, self._rrset(name, node[kind])], [])
            if _T.CNAME not in node:
                return Answer(dns.rcode.NOERROR, found, [self.soa_rrset()])
            found.append(self._rrset(name, node[_T.CNAME]))
            name = node[_T.CNAME][0].target
            if not name.is_subdomain(self.origin):
                break
        return Answer(dns.rcode.NOERROR, found, [])

    def _find(self, name: Name) -> dict[Type, dns.rdataset.Rdataset] | None:
        """The node, or the closest enclosing wildcard's."""
        if name in self._nodes:
            return self._nodes[name]
        while name != self.origin:
            name = name.parent()
            wildcard = dns.name.Name((b"*", *name.labels))
            if wildcard in self._nodes:
                return self._nodes[wildcard]
            if name in self._nodes:
                return None
        return None

    # --- updates (RFC 2136) --------------------------------------------------------------------------------------

    def update(self, message: dns.update.UpdateMessage) -> bool:
        """Applies all of it or nothing; returns whether anything changed. Raises Refusal."""
        zone = message.zone[0]
        if zone.name != self.origin or zone.rdclass != IN:
            raise Refusal(dns.rcode.NOTAUTH)
        self._check_prerequisites(message.prerequisite)
        for rrset in message.update:
            self._prescan(rrset)
        before = self.serial
        changed = [self._apply(rrset) for rrset in message.update]
        if any(changed) and self.serial == before:
            self.bump()
        return any(changed)

    def _check_prerequisites(self, wanted: list[dns.rrset.RRset]) -> None:
        exact: dict[tuple[Name, Type], set[dns.rdata.Rdata]] = {}
        for rrset in wanted:
            self._inside(rrset)
            if rrset.ttl:
                raise Refusal(dns.rcode.FORMERR)
            node = self._nodes.get(rrset.name, {})
            present = bool(node) if rrset.rdtype == _T.ANY else rrset.rdtype in node
            if rrset.deleting == ANY and not present:
                raise Refusal(dns.rcode.NXDOMAIN if rrset.rdtype == _T.ANY else dns.rcode.NXRRSET)
            if rrset.deleting == NONE and present:
                raise Refusal(dns.rcode.YXDOMAIN if rrset.rdtype == _T.ANY else dns.rcode.YXRRSET)
            if rrset.deleting is None:
                exact.setdefault((rrset.name, rrset.rdtype), set()).update(rrset)
        for (name, kind), values in exact.items():
            if set(self._nodes.get(name, {}).get(kind, ())) != values:
                raise Refusal(dns.rcode.NXRRSET)

    def _inside(self, rrset: dns.rrset.RRset) -> None:
        if not rrset.name.is_subdomain(self.origin):
            raise Refusal(dns.rcode.NOTZONE)

    def _prescan(self, rrset: dns.rrset.RRset) -> None:
        self._inside(rrset)
        if rrset.rdtype in _META and not (rrset.deleting == ANY and rrset.rdtype == _T.ANY):
            raise Refusal(dns.rcode.FORMERR)
        if rrset.deleting in (ANY, NONE) and rrset.ttl:
            raise Refusal(dns.rcode.FORMERR)

    def _apply(self, rrset: dns.rrset.RRset) -> bool:
        if rrset.deleting == ANY:
            return self.remove(rrset.name, None if rrset.rdtype == _T.ANY else _T.to_text(rrset.rdtype)) > 0
        if rrset.deleting == NONE:
            return self._discard(rrset.name, rrset.rdtype, next(iter(rrset)))
        return self._add(rrset.name, rrset.rdtype, rrset.ttl, next(iter(rrset)))

    def _discard(self, name: Name, kind: Type, rdata: dns.rdata.Rdata) -> bool:
        held = self._nodes.get(name, {}).get(kind)
        if held is None or rdata not in held or kind == _T.SOA or (name == self.origin and kind == _T.NS and len(held) == 1):
            return False
        left = [other for other in held if other != rdata]
        if left:
            self._nodes[name][kind] = dns.rdataset.from_rdata_list(held.ttl, left)
        else:
            del self._nodes[name][kind]
        self._tidy(name)
        return True

    def _add(self, name: Name, kind: Type, ttl: int, rdata: dns.rdata.Rdata) -> bool:
        node = self._nodes.get(name, {})
        if (kind == _T.CNAME and any(other != _T.CNAME for other in node)) or (kind != _T.CNAME and _T.CNAME in node):
            return False  # silently ignored, 3.4.2.2
        held = node.get(kind)
        if kind == _T.SOA:
            if name != self.origin or not _later(rdata.serial, self.serial):  # type: ignore[attr-defined] # see serial
                return False
            held = None
        if held is not None and rdata in held and held.ttl == ttl:
            return False
        if held is None or kind == _T.CNAME:
            self._nodes.setdefault(name, {})[kind] = dns.rdataset.from_rdata(ttl, rdata)
        else:
            held.add(rdata)
            held.ttl = ttl
        return True

    def _tidy(self, name: Name) -> None:
        if name in self._nodes and not self._nodes[name]:
            del self._nodes[name]

    @staticmethod
    def _rrset(name: Name, rdataset: dns.rdataset.Rdataset) -> dns.rrset.RRset:
        return dns.rrset.from_rdata_list(name, rdataset.ttl, list(rdataset))


def _later(one: int, other: int) -> bool:
    """Whether a serial is after another one (RFC 1982)."""
    return one != other and ((one - other) & 0xFFFFFFFF) < 0x80000000
