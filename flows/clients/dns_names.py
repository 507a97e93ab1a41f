"""What a published name owns, and what may stand there: the same for every DNS provider. See the table in :mod:`flows.clients.dns`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass

from flows.clients.http import fit
from flows.domain.sources import Record
from flows.errors import BadInput

OWNER_LABEL, SRV_LABEL = "_zlh.", "_minecraft._tcp."
OWNER_PREFIX = "zlh-owner="
#: Types whose value is a name.
TARGETS = frozenset({"CNAME", "NS", "PTR"})
_OWNER = re.compile(rf"{OWNER_PREFIX}([A-Za-z0-9-]{{1,64}})")


def owned(name: str) -> tuple[tuple[str, str], ...]:
    """Labels and types that a published name owns."""
    name = name.lower()
    return ((name, "A"), (name, "AAAA"), (name, "CNAME"), (SRV_LABEL + name, "SRV"), (OWNER_LABEL + name, "TXT"))


def by_set(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by label and type."""
    sets: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        sets.setdefault((record.name.lower(), record.rtype), []).append(record)
    return sets


def owner_text(owner: str) -> str:
    """Raises BadInput for what is no server id."""
    text = OWNER_PREFIX + owner
    if not _OWNER.fullmatch(text):
        raise BadInput("owner", owner, why="is no server id")
    return text


def owner_of(records: Sequence[Record]) -> str | None:
    """The one server that the TXT records name, None where they name none or several."""
    named = {match[1] for r in records if r.rtype == "TXT" and (match := _OWNER.fullmatch(r.value))}
    return named.pop() if len(named) == 1 else None


def inside(plain: str, origin: dns.name.Name, zone: str) -> dns.name.Name:
    """The absolute name. Raises BadInput for what is not inside our zone."""
    try:
        name = dns.name.from_text(plain.lower())
    except (dns.exception.DNSException, ValueError) as error:
        raise BadInput("name", plain, why=f"is no DNS name: {fit(error)}") from error
    if not name.is_subdomain(origin) or name == origin:
        raise BadInput("name", plain, why=f"is not inside the zone {zone} (ZLH_DNS__ZONE)")
    return name


def rdata(rtype: str, value: str) -> dns.rdata.Rdata:
    """Raises BadInput for a value that the type cannot have."""
    text = value
    if rtype == "TXT":
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    elif rtype in TARGETS or rtype == "SRV":
        text = value.rstrip(".") + "."
    try:
        return dns.rdata.from_text(dns.rdataclass.IN, rtype, text)
    except (dns.exception.DNSException, ValueError) as error:
        raise BadInput("value", value, why=f"is no {rtype} record: {fit(error)}") from error
