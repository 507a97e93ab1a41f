"""Flavors: what runs in a container. Each is of one type; nodes map those that they can build to a template.

A game's versions are the catalog's. A developer environment's version is that of the system in its template, so it is known here.
"""

from __future__ import annotations

from collections.abc import Mapping

from flows.domain.server import ContainerType

#: What the role ``fabric_server`` can run.
GAMES = frozenset({"fabric", "vanilla", "paper"})
#: Developer environments with their versions.
ENVIRONMENTS: Mapping[str, frozenset[str]] = {"dev": frozenset({"1"}), "debian": frozenset({"12", "13"})}


def misfit(ctype: ContainerType, flavor: str, version: str) -> tuple[str, str] | None:
    """The field that does not fit the type, and why; None: all do. A game's version is not looked at."""
    of_type = GAMES if ctype is ContainerType.GAME else ENVIRONMENTS.keys()
    if flavor not in of_type:
        return "flavor", f"is none of ctype {ctype.value}: choose one of {', '.join(sorted(of_type))}"
    if ctype is ContainerType.DEV and version not in ENVIRONMENTS[flavor]:
        return "version", f"is none of {flavor}: choose one of {', '.join(sorted(ENVIRONMENTS[flavor]))}"
    return None
