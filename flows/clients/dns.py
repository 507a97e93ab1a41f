"""The DNS client: :class:`flows.domain.ports.DnsWriter` over RFC 2136 updates and zone transfers, signed with TSIG, always over TCP.

A published name owns three labels, all replaced and removed together:

=============================  ==============  ==================================================
``<name>``                     A, AAAA, CNAME  where players are sent
``_minecraft._tcp.<name>``     SRV             the port, where it is not Minecraft's own
``_zlh.<name>``                TXT             ``"zlh-owner=<server id>"``: whose the name is
=============================  ==============  ==================================================

The owner record has a label of its own because nothing may stand beside a CNAME. Every update carries prerequisites on the values that
its caller saw: changed meanwhile is Conflict, so a late or repeated call does nothing. Names and targets are written without the trailing
dot, in lower case; see :class:`flows.domain.sources.Record`. Built by ``bootstrap``.
"""

from __future__ import annotations

import asyncio
import binascii
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.tsig
import dns.update
import dns.xfr

from flows.clients.dns_errors import refusal, signature
from flows.clients.dns_names import OWNER_LABEL, OWNER_PREFIX, SRV_LABEL, TARGETS, by_set, inside, owned, owner_of, owner_text, rdata
from flows.clients.dns_transfer import Transfer
from flows.clients.http import fit, literal_host
from flows.domain.sources import Record, ZoneView
from flows.errors import AmbiguousEffect, AutomationError, BadInput, MisconfiguredSetting, Unproven, Unreachable
from flows.settings import DnsSettings

#: Reading ten thousand names takes dnspython some seconds.
TRANSFER_CALLS = 3
RETRY_S = 0.2
_LOOK = "check the name server and ZLH_DNS__SERVER"


class DnsClient:
    """Raises MisconfiguredSetting at once for a server without a literal address, a zone that is none, or a key that cannot be one."""

    def __init__(self, settings: DnsSettings) -> None:
        self._host, self._port = literal_host("ZLH_DNS__SERVER", settings.server, 53)
        self._settings = settings
        try:
            self._origin = dns.name.from_text(settings.zone.lower())
        except (dns.exception.DNSException, ValueError) as error:
            raise MisconfiguredSetting(
                "ZLH_DNS__ZONE", why=f"{settings.zone!r} is no name: {fit(error)}", remedy="set it like play.example"
            ) from error
        self._backend = dns.asyncbackend.get_backend("asyncio")

    async def close(self) -> None:
        """Nothing outlives a call."""

    # Reading

    async def zone(self) -> ZoneView:
        """One transfer. Raises Unproven where it broke off: half a zone proves nothing."""
        records: dict[str, tuple[Record, ...]] = {}
        owners: dict[str, str] = {}
        for name, sets in (await self._transfer()).items():
            plain = _plain(name)
            records[plain] = tuple(_records(plain, sets))
            owner = owner_of(records[plain]) if plain.startswith(OWNER_LABEL) else None
            if owner is not None:
                owners[plain.removeprefix(OWNER_LABEL)] = owner
        return ZoneView(records=records, owners=owners)

    async def records(self, name: str) -> tuple[Record, ...]:
        """What the name's three labels hold. By transfer as well: to a question, a wildcard would answer for a name that is not there."""
        transferred = await self._transfer()
        found: list[Record] = []
        for label in (name, SRV_LABEL + name, OWNER_LABEL + name):
            found += _records(label.lower(), transferred.get(self._name(label), []))
        return tuple(found)

    async def _transfer(self) -> Mapping[dns.name.Name, list[dns.rdataset.Rdataset]]:
        """Tried again once where it failed soon. A transfer may take TRANSFER_CALLS times a call's time-out."""
        began = time.monotonic()
        try:
            return await self._transfer_once()
        except (Unreachable, Unproven):
            if time.monotonic() - began > self._settings.timeout_s:
                raise
        await asyncio.sleep(RETRY_S)
        return await self._transfer_once()

    async def _transfer_once(self) -> Mapping[dns.name.Name, list[dns.rdataset.Rdataset]]:
        what = f"DNS: transfer of {self._settings.zone}"
        transfer = Transfer(self._origin)
        query, _ = dns.xfr.make_query(transfer, None, keyring=self._key())
        lifetime = self._settings.timeout_s * TRANSFER_CALLS
        try:
            await dns.asyncquery.inbound_xfr(self._host, transfer, query, port=self._port, lifetime=lifetime, backend=self._backend)
            return transfer.sets
        except dns.xfr.TransferError as error:
            raise refusal(what, error.rcode, self._settings) from error
        except (dns.tsig.PeerError, dns.tsig.BadSignature, dns.tsig.BadTime, dns.tsig.BadKey, dns.message.UnknownTSIGKey) as error:
            raise signature(what, error, self._settings) from error
        except dns.exception.Timeout as error:
            raise Unreachable(what, why=f"no whole answer within {lifetime:g} s", remedy=_LOOK) from error
        except EOFError as error:
            raise Unproven(what, why="it broke off: a part of the zone is unknown", remedy=_LOOK) from error
        except OSError as error:
            raise Unreachable(what, why=fit(error.strerror or type(error).__name__), remedy=_LOOK) from error
        except (dns.exception.DNSException, ValueError, KeyError) as error:
            raise Unproven(what, why=f"the transfer is not valid: {fit(error) or type(error).__name__}", remedy=_LOOK) from error

    # Writing

    async def publish(self, name: str, wanted: Sequence[Record], owner: str, seen: Sequence[Record]) -> None:
        """See the protocol. ``seen`` is what :meth:`records` gave; a set of records that it does not mention must not be there."""
        update = self._update()
        before = by_set(seen)
        for label, rtype in owned(name):
            self._require(update, label, rtype, before.get((label, rtype), []))
        for label, rtype in owned(name):
            update.delete(self._name(label), rtype)
        for (label, rtype), records in by_set(wanted).items():
            if (label, rtype) not in owned(name) or rtype == "TXT":
                raise BadInput("wanted", f"{label} {rtype}", why=f"is no record that {name} may have")
            for record in records:
                update.add(self._name(label), record.ttl, rdata(rtype, record.value))
        update.add(self._name(OWNER_LABEL + name), self._settings.ttl_s, rdata("TXT", owner_text(owner)))
        await self._send(f"DNS: publication of {name}", update)

    async def withdraw(self, name: str, owner: str, seen: Sequence[Record]) -> None:
        """Only while the name is ``owner``'s, and the labels that ``seen`` mentions are as seen."""
        update = self._update()
        before = by_set(seen)
        labels = {label for label, _ in before} | {name.lower()}
        for label, rtype in owned(name):
            if rtype == "TXT":
                self._require(update, label, rtype, [Record(label, "TXT", owner_text(owner))])
            elif label in labels:
                self._require(update, label, rtype, before.get((label, rtype), []))
        for label, rtype in owned(name):
            update.delete(self._name(label), rtype)
        await self._send(f"DNS: withdrawal of {name}", update)

    def _update(self) -> dns.update.UpdateMessage:
        return dns.update.UpdateMessage(self._origin, keyring=self._key())

    def _require(self, update: dns.update.UpdateMessage, label: str, rtype: str, seen: Sequence[Record]) -> None:
        name = self._name(label)
        if seen:
            update.present(name, dns.rdataset.from_rdata_list(0, [rdata(rtype, r.value) for r in seen]))
        else:
            update.absent(name, rtype)

    async def _send(self, what: str, update: dns.update.UpdateMessage) -> None:
        """Sent once. Raises Conflict (a prerequisite failed), AmbiguousEffect (no answer that can be trusted), Unauthorized, Unreachable."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                connection = await self._connect(what)
                async with connection:
                    response = await self._answer(what, update, connection)
        except TimeoutError as error:
            raise _ambiguous(what, f"no answer within {self._settings.timeout_s:g} s") from error
        rcode = response.rcode()
        if rcode != dns.rcode.NOERROR:
            raise refusal(what, rcode, self._settings)
        if not response.had_tsig:
            raise _ambiguous(what, "the answer is not signed")

    async def _connect(self, what: str) -> Any:
        """A stream socket of dnspython's, whose types it does not export. Whatever fails here has sent nothing."""
        try:
            family = dns.inet.af_for_address(self._host)
            return await self._backend.make_socket(  # type: ignore[no-untyped-call] # dnspython left this one untyped
                family, socket.SOCK_STREAM, 0, None, (self._host, self._port), self._settings.timeout_s
            )
        except (OSError, dns.exception.Timeout) as error:
            why = "connection refused" if isinstance(error, ConnectionRefusedError) else "no connection"
            raise Unreachable(what, why=why, remedy=_LOOK) from error

    async def _answer(self, what: str, update: dns.update.UpdateMessage, connection: Any) -> dns.message.Message:
        try:
            return await dns.asyncquery.tcp(update, self._host, self._settings.timeout_s, self._port, sock=connection, backend=self._backend)
        except (dns.tsig.PeerError, dns.message.UnknownTSIGKey) as error:  # the server refused our signature
            raise signature(what, error, self._settings) from error
        except (EOFError, OSError, dns.exception.DNSException, ValueError) as error:
            raise _ambiguous(what, f"no valid answer ({fit(error) or type(error).__name__})") from error

    # Names, values, keys

    def _name(self, plain: str) -> dns.name.Name:
        return inside(plain, self._origin, self._settings.zone)

    def _key(self) -> dns.tsig.Key:
        settings = self._settings
        secret = settings.tsig_secret.get_secret_value()
        try:
            key = dns.tsig.Key(settings.tsig_name, secret, settings.tsig_algorithm)
        except (binascii.Error, dns.exception.DNSException, ValueError):
            key = None
        if key is None or not key.secret:
            # The cause stays out: it may show a part of the secret.
            raise MisconfiguredSetting(
                "ZLH_DNS__TSIG_SECRET", why="is empty or not base64", remedy="set it to the secret of the zone's TSIG key"
            ) from None
        if key.algorithm not in dns.tsig.mac_sizes:
            raise MisconfiguredSetting(
                "ZLH_DNS__TSIG_ALGORITHM", why=f"{settings.tsig_algorithm!r} is not known", remedy="hmac-sha256 is what name servers make by default"
            )
        return key


def _ambiguous(what: str, why: str) -> AutomationError:
    return AmbiguousEffect(what, why=why, remedy="read the zone before acting again")


def _plain(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _records(name: str, sets: Sequence[dns.rdataset.Rdataset]) -> Iterator[Record]:
    for rdataset in sets:
        rtype = dns.rdatatype.to_text(rdataset.rdtype)
        for member in rdataset:
            yield Record(name, rtype, _value(rtype, member), rdataset.ttl)


def _value(rtype: str, rdata: dns.rdata.Rdata) -> str:
    if rtype == "TXT":
        strings: Sequence[bytes] = getattr(rdata, "strings", ())  # dnspython makes the classes of record data at run time
        return b"".join(strings).decode(errors="replace")
    text = rdata.to_text()
    return text.rstrip(".").lower() if rtype in TARGETS or rtype == "SRV" else text


__all__ = ["OWNER_LABEL", "OWNER_PREFIX", "SRV_LABEL", "DnsClient"]
