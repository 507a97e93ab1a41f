"""Refusals of a name server by rcode (RFC 2136, 2.2) and by TSIG error (RFC 8945, 5.2). Used by :mod:`dns` alone."""

from __future__ import annotations

import dns.exception
import dns.message
import dns.rcode
import dns.tsig

from flows.errors import AutomationError, BadAnswer, BadInput, Busy, Conflict, Forbidden, MisconfiguredSetting, Unauthorized
from flows.settings import DnsSettings

_R = dns.rcode
_PREREQUISITE = frozenset({_R.NXRRSET, _R.YXRRSET, _R.NXDOMAIN, _R.YXDOMAIN})


def refusal(what: str, rcode: dns.rcode.Rcode, settings: DnsSettings) -> AutomationError:
    """None of these had any effect: a server carries out an update whole or not at all."""
    name = dns.rcode.to_text(rcode)
    if rcode in _PREREQUISITE:
        return Conflict(what, why=f"the records changed since they were read ({name})", remedy="read them again")
    if rcode in (_R.NOTAUTH, _R.BADKEY, _R.BADSIG, _R.BADTIME):
        return Unauthorized(
            what,
            why=f"the name server refused the key {settings.tsig_name} ({name})",
            remedy="set ZLH_DNS__TSIG_SECRET (and _NAME, _ALGORITHM) to the zone's key; check that ZLH_DNS__ZONE is a zone of that server",
        )
    if rcode == _R.REFUSED:
        return Forbidden(
            what,
            why=f"the key {settings.tsig_name} may not do this (REFUSED)",
            remedy="allow it transfers and updates of the zone; check ZLH_DNS__TSIG_NAME",
        )
    if rcode == _R.SERVFAIL:
        return Busy(what, why="the name server failed (SERVFAIL)", remedy="read its log")
    if rcode == _R.NOTZONE:
        return BadInput("name", what, why=f"is not inside the zone {settings.zone}")
    if rcode == _R.NOTIMP:
        return MisconfiguredSetting("ZLH_DNS__SERVER", why=f"{what}: it knows no dynamic updates", remedy="name an authoritative server of the zone")
    return BadAnswer(what, why=f"the name server says {name}")


def signature(what: str, error: dns.exception.DNSException, settings: DnsSettings) -> AutomationError:
    """A TSIG that either side refused. None of the texts holds the secret."""
    if isinstance(error, dns.tsig.PeerBadTime | dns.tsig.BadTime):
        return Unauthorized(
            what, why="its clock and ours differ by more than the signature allows (BADTIME)", remedy="correct the clocks (NTP) of both"
        )
    side = "the name server refused" if isinstance(error, dns.tsig.PeerError) else "the answer is not signed with"
    return Unauthorized(
        what,
        why=f"{side} the key {settings.tsig_name} ({type(error).__name__})",
        remedy="set ZLH_DNS__TSIG_SECRET (and _NAME, _ALGORITHM) to the key that the name server has for the zone",
    )
