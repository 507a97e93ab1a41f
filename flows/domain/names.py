"""Names of servers: DNS labels that are nobody else's."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DEV_HOST = re.compile(r"(?:dev|zlh)-.*\d+")
#: Labels that mean something else under our domains.
RESERVED = frozenset(
    "www api admin app apps auth autoconfig autodiscover billing bastion cdn console dashboard dev dns docs ftp game games "
    "git help imap internal localhost login mail metrics mx ns ns1 ns2 ns3 ns4 panel play pop portal proxy prometheus root "
    "smtp ssh static status support test velocity vpn webhook wildcard wpad".split()
)


def problem_with(name: str) -> str | None:
    """Why ``name`` cannot be a server's name, or None."""
    if not _LABEL.fullmatch(name) or "--" in name:
        return "must be a DNS label: 1-63 of a-z, 0-9 and single hyphens, starting with a letter and not ending with a hyphen"
    if name in RESERVED or _DEV_HOST.fullmatch(name):
        return "is reserved"
    return None
