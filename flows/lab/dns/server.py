"""Messages in, messages out: TSIG (RFC 8945), questions, UPDATE and AXFR over one zone. No sockets, no faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.renderer
import dns.rrset
import dns.tsig
import dns.update

from flows.lab.dns.zone import Refusal, Zone

#: Bytes of records per message of a transfer; names compress, so messages stay well below 64 KiB.
TRANSFER_CHUNK = 30_000
#: Largest UDP answer without EDNS.
UDP_PLAIN = 512


@dataclass
class Request:
    """A message that was understood and, if signed, verified. ``call`` is what faults match: ``QUERY name``, ``UPDATE name``, ``AXFR zone``."""

    message: dns.message.Message
    call: str
    tcp: bool

    @property
    def transfer(self) -> bool:
        return self.call.startswith("AXFR ")


class Server:
    """Answers for one zone with one key."""

    def __init__(self, zone: Zone, key: dns.tsig.Key) -> None:
        self.zone, self._key = zone, key
        self.updates: list[dict[str, object]] = []

    def understand(self, wire: bytes, *, tcp: bool) -> Request | bytes | None:
        """A request to carry out, or an error's wire form, or None for what deserves no answer."""
        try:
            message = dns.message.from_wire(wire, keyring={self._key.name: self._key})
        except (dns.message.UnknownTSIGKey, dns.tsig.BadKey, dns.tsig.BadAlgorithm):
            return self._untrusted(wire, dns.rcode.BADKEY)
        except dns.tsig.BadSignature:
            return self._untrusted(wire, dns.rcode.BADSIG)
        except dns.tsig.BadTime:
            return self._untrusted(wire, dns.rcode.BADTIME)
        except dns.exception.DNSException:
            return _header_only(wire, dns.rcode.FORMERR)
        if message.flags & dns.flags.QR:
            return None
        return Request(message, call_of(message), tcp)

    def fail(self, request: Request, rcode: dns.rcode.Rcode) -> bytes:
        """An answer that says no."""
        response = dns.message.make_response(request.message)
        response.set_rcode(rcode)
        return response.to_wire()

    def carry_out(self, request: Request) -> list[bytes]:
        """The whole answer; more than one message only for a transfer."""
        message = request.message
        if isinstance(message, dns.update.UpdateMessage):
            return [self._update(request, message)]
        if message.opcode() != dns.opcode.QUERY:
            return [self.fail(request, dns.rcode.NOTIMP)]
        if len(message.question) != 1:
            return [self.fail(request, dns.rcode.FORMERR)]
        if request.transfer:
            return self.transfer(request)
        return [self._query(request)]

    def _query(self, request: Request) -> bytes:
        message, question = request.message, request.message.question[0]
        found = self.zone.resolve(question.name, question.rdtype)
        response = dns.message.make_response(message, our_payload=1232)
        response.set_rcode(found.rcode)
        if found.rcode != dns.rcode.REFUSED:
            response.flags |= dns.flags.AA
        response.answer, response.authority = found.answer, found.authority
        if request.tcp:
            return response.to_wire()
        return response.to_wire(max_size=max(UDP_PLAIN, message.payload if message.edns >= 0 else 0), prefer_truncation=True)

    def _update(self, request: Request, message: dns.update.UpdateMessage) -> bytes:
        entry: dict[str, object] = {
            "at": time.time(),
            "names": sorted({_plain(rrset.name) for rrset in message.update}),
            "signed": message.had_tsig,
            "changed": False,
        }
        self.updates.append(entry)
        if not message.had_tsig:
            rcode = dns.rcode.REFUSED
        else:
            try:
                entry["changed"] = self.zone.update(message)
                rcode = dns.rcode.NOERROR
            except Refusal as refusal:
                rcode = refusal.rcode
        entry["rcode"] = dns.rcode.to_text(rcode)
        return self.fail(request, rcode)

    def transfer(self, request: Request, chunk: int = TRANSFER_CHUNK) -> list[bytes]:
        """The whole zone, or the one message that refuses it."""
        message = request.message
        if not request.tcp:
            return [self.fail(request, dns.rcode.FORMERR)]
        if not message.had_tsig:
            return [self.fail(request, dns.rcode.REFUSED)]
        if message.question[0].name != self.zone.origin:
            return [self.fail(request, dns.rcode.NOTAUTH)]
        wires: list[bytes] = []
        context = None
        for answer in _chunks(self.zone, chunk):
            response = dns.message.make_response(message)
            response.flags |= dns.flags.AA
            response.answer = answer
            wires.append(response.to_wire(max_size=65_535, multi=True, tsig_ctx=context))
            context = response.tsig_ctx
        return wires

    def _untrusted(self, wire: bytes, error: dns.rcode.Rcode) -> bytes | None:
        """NOTAUTH with the TSIG error: unsigned, but for BADTIME, which is signed and carries our time (RFC 8945, 5.2.3)."""
        try:
            message = dns.message.from_wire(wire, keyring=False)
        except dns.exception.DNSException:
            return _header_only(wire, dns.rcode.FORMERR)
        if message.tsig is None or message.keyname is None:
            return _header_only(wire, dns.rcode.FORMERR)
        response = dns.message.make_response(message)
        response.set_rcode(dns.rcode.NOTAUTH)
        if error == dns.rcode.BADTIME:
            response.use_tsig(self._key, tsig_error=error, other_data=int(time.time()).to_bytes(6, "big"))
            response.request_mac = message.mac or b""
        else:
            given = message.tsig[0]
            response.tsig = dns.message.Message._make_tsig(  # type: ignore[no-untyped-call] # the library has no public way to an unsigned TSIG
                message.keyname, given.algorithm, given.time_signed, given.fudge, b"", message.id, error, b""
            )
        return response.to_wire()


def _chunks(zone: Zone, limit: int) -> Iterator[list[dns.rrset.RRset]]:
    """The transfer's records between two SOAs, in messages of bounded size."""
    answer = [zone.soa_rrset()]
    size = 0
    for name, ttl, rdata in zone.records():
        if answer and answer[-1].name == name and answer[-1].rdtype == rdata.rdtype:
            answer[-1].add(rdata, ttl)
        else:
            answer.append(dns.rrset.from_rdata(name, ttl, rdata))
        size += len(name.to_wire() or b"") + len(rdata.to_wire() or b"") + 10
        if size > limit:
            yield answer
            answer, size = [], 0
    answer.append(zone.soa_rrset())
    yield answer


def call_of(message: dns.message.Message) -> str:
    """What faults match."""
    if isinstance(message, dns.update.UpdateMessage):
        name = message.update[0].name if message.update else message.zone[0].name
        return f"UPDATE {_plain(name)}"
    if not message.question:
        return "QUERY ."
    question = message.question[0]
    kind = "AXFR" if question.rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR) else "QUERY"
    return f"{kind} {_plain(question.name)}"


def _plain(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _header_only(wire: bytes, rcode: dns.rcode.Rcode) -> bytes | None:
    """An error without any section, for a message that could not be read. None where even the header is missing."""
    if len(wire) < 12 or wire[2] & 0x80:
        return None
    return wire[:2] + bytes([0x80 | (wire[2] & 0x78), int(rcode) & 0x0F]) + bytes(8)
