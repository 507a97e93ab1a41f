"""What a setting's value must look like, beyond its type: addresses, URLs, times. Called by :mod:`flows.settings` alone; pure.

Each returns the value as it is, or raises what says why it cannot be and what to do.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic_core import PydanticCustomError


def wrong(why: str, remedy: str, setting: str = "") -> PydanticCustomError:
    """``setting`` as ``group.field``, where the check knows better than the place of the value."""
    return PydanticCustomError("setting", "{why}", {"why": why, "remedy": remedy} | ({"setting": setting} if setting else {}))


def bind(value: str) -> str:
    """``address:port`` of one address, never of all that the machine has."""
    host, _, port = value.rpartition(":")
    at = _address(host.removeprefix("[").removesuffix("]"))
    mapped = at.ipv4_mapped if isinstance(at, ipaddress.IPv6Address) else None
    if at is None or (mapped or at).is_unspecified or not port.isdecimal():
        raise wrong(f"{value!r} is not one address:port of this machine", "set it like 10.20.0.2:8701: never every address of the machine")
    return value


def url(value: str, example: str, *, hosts: tuple[str, ...] = ()) -> str:
    """Its host is a literal address (or one of ``hosts``): what mends the network must not depend on names."""
    try:
        parts = urlsplit(value)
        good = (_address(parts.hostname or "") is not None or parts.hostname in hosts) and parts.port != 0
    except ValueError:  # a port out of range, or half a bracket
        good = False
    if not good or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
        raise wrong("is no http or https URL with a literal address", f"set it like {example}")
    return value


def network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise wrong(str(error), "set it like 10.20.0.0/16") from None
    return value


def member(value: str, pool: str) -> str:
    """An address that a machine in the network ``pool`` can have."""
    room, at = ipaddress.ip_network(pool), _address(value)
    ends = (room.network_address, room.broadcast_address) if room.num_addresses > 2 else ()
    if at is None or at.version != room.version or at not in room or at in ends:
        raise wrong(f"{value!r} is no address for a machine in the pool", f"name one of {pool}, or correct ZLH_NETWORK__POOL")
    return value


def origin(value: str) -> str:
    """An address or a network, and nothing besides: it is written into authorized_keys as it is."""
    address, slash, prefix = value.partition("/")
    try:
        good = _address(address) is not None and (not slash or prefix.isdecimal()) and ipaddress.ip_network(value) is not None
    except ValueError:
        good = False
    if not good:
        raise wrong(f"{value!r} is neither an address nor a network", "set it like 10.20.0.2 or 10.20.0.0/24, separated by commas")
    return value


def node(value: str) -> str:
    """``name=address``: which node of the cluster answers SSH where."""
    name, equals, address = value.partition("=")
    if not equals or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name) is None or _address(address) is None:
        raise wrong(f"{value!r} is no NAME=ADDRESS with a literal address", "set it like pve1=10.0.0.2,pve2=10.0.0.3")
    return value


def machine(value: str) -> str:
    """``name=address``: a machine under the name that it gives itself, and how it appears to servers."""
    name, equals, address = value.partition("=")
    if not equals or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None or _address(address) is None:
        raise wrong(f"{value!r} is no NAME=ADDRESS with a literal address", "set it like control1=10.0.0.2,control2=10.0.0.3")
    return value


def zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise wrong(f"{value!r} is no IANA time zone", "set it like Europe/Berlin") from None
    return value


def time_of_day(value: str) -> str:
    if re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d|24:00", value, re.ASCII) is None:
        raise wrong(f"{value!r} is no time of day", "set it as HH:MM, 00:00 to 24:00")
    return value


def _address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None where it is no literal address. A scope (``fe80::1%eth0``) is none of ours, and may hold any text."""
    try:
        return None if "%" in value else ipaddress.ip_address(value)
    except ValueError:
        return None
