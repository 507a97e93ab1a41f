"""What a person can do to the fleet behind the product's back, as ``zlh lab fault TARGET VERB`` says it: requests of the control API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.errors import BadInput

#: What each kind of target takes; ``<part>`` is the name of a part of the lab.
VERBS: Mapping[str, tuple[str, ...]] = {
    "agent:<vmid>": ("kill", "freeze", "revive", "crash"),
    "ct:<vmid>": ("start", "stop", "die", "destroy", "lock", "unlock"),
    "node:<name>": ("down", "up"),
    "dns:<name>": ("drop", "corrupt", "duplicate"),
    "<part>": ("restart",),
}
#: What takes a deed back.
UNDONE_BY: Mapping[str, str] = {"kill": "revive", "freeze": "revive", "stop": "start", "die": "start", "lock": "unlock", "down": "up"}
#: An address for documentation (RFC 5737): where nobody's players are.
NOWHERE = "192.0.2.66"


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the control API."""

    path: str
    body: Mapping[str, Any] = field(default_factory=dict)
    method: str = "POST"


def deed(target: str, verb: str, value: str | None = None) -> Request | None:
    """None: ``verb`` is none of these, so it may be a fault's mode.

    ``value`` is the address of a record (corrupt, duplicate), the kind of a lock, the reason of a crash. Raises BadInput where the verb is
    another target's, the number is none, or the verb takes no value.
    """
    kind, colon, name = target.partition(":")
    form = next((f for f in VERBS if colon and f.startswith(f"{kind}:")), "<part>")
    if verb not in VERBS[form]:
        others = [f for f, verbs in VERBS.items() if verb in verbs]
        if others:
            raise BadInput("TARGET", target, why=f"{verb} is for {' and '.join(others)}", remedy=f"name one, or choose {', '.join(VERBS[form])}")
        return None
    if (not name and form != "<part>") or ("<vmid>" in form and not (name.isascii() and name.isdecimal())):
        raise BadInput("TARGET", target, why=f"is not {form}", remedy="look what there is: zlh lab status --json; zlh servers")
    if value is not None and verb not in ("corrupt", "duplicate", "lock", "crash"):
        raise BadInput("--value", value, why=f"{verb} takes none", remedy="leave it out")
    match kind if colon else "part":
        case "agent":
            return Request(f"/agents/{name}/{verb}", {"reason": value} if value else {})
        case "ct":
            return Request(f"/containers/{name}/{verb}", {"lock": value} if value else {})
        case "node":
            return Request(f"/nodes/{name}/{verb}")
        case "dns" if verb == "drop":
            return Request("/dns", {"op": "delete", "name": name})
        case "dns":
            address = value or NOWHERE
            rtype = "AAAA" if ":" in address else "A"
            return Request("/dns", {"op": "replace" if verb == "corrupt" else "add", "name": name, "rtype": rtype, "value": address})
        case _:
            return Request(f"/parts/{target}/restart")
