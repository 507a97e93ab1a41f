"""What our token must be allowed to do, and what it is. An empty list with 200 is how Proxmox answers a token without rights, so
nothing that Proxmox lists is believed before :func:`require` has seen the right to see it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from flows.clients.proxmox.answers import row, truth
from flows.errors import BadAnswer, Unproven

#: The least rights that everything works with: path → privileges, each propagated to what is below it.
#: ``pveum role add ZlhAutopilot -privs "…"``, then ``pveum acl modify <path> --tokens 'zlh@pve!autopilot' --roles ZlhAutopilot``.
LEAST_RIGHTS: Mapping[str, frozenset[str]] = {
    "/": frozenset({"Sys.Audit"}),  # cluster status, and everybody's tasks
    "/vms": frozenset(
        {
            "VM.Audit", "VM.Allocate", "VM.Clone", "VM.PowerMgmt", "VM.Config.CPU", "VM.Config.Disk", "VM.Config.Memory",
            "VM.Config.Network", "VM.Config.Options",
        }
    ),
    "/storage": frozenset({"Datastore.AllocateSpace", "Datastore.Audit"}),
    "/sdn": frozenset({"SDN.Use"}),
}  # fmt: skip

Rights = Mapping[str, Mapping[str, bool]]


def parse(data: object, what: str) -> Rights:
    """``/access/permissions``: path → privilege → whether it holds below that path as well. Raises BadAnswer."""
    held: dict[str, dict[str, bool]] = {}
    for path, privileges in row(data if data != [] else {}, what).items():  # Perl says [] for an empty mapping now and then
        if not isinstance(privileges, dict):
            raise BadAnswer(what, why="the answer does not map paths to privileges")
        held[str(path)] = {str(name): truth(value) for name, value in privileges.items()}
    return held


def holds(rights: Rights, path: str, privilege: str) -> bool:
    """Whether it holds at ``path`` and below. The most specific path that is listed decides, as in Proxmox."""
    if path in rights:
        return rights[path].get(privilege, False)
    while path != "/":
        path = path.rsplit("/", 1)[0] or "/"
        if path in rights:
            return rights[path].get(privilege, False)
    return False


def missing(rights: Rights) -> list[str]:
    """Least rights that are not held, as ``VM.Clone on /vms``."""
    return [f"{p} on {path}" for path, wanted in LEAST_RIGHTS.items() for p in sorted(wanted) if not holds(rights, path, p)]


def require(rights: Rights, what: str, token: str) -> None:
    """Raises Unproven unless the token sees every guest and every task, so that what is not listed is not there."""
    lacking = [f"{p} on {path}" for path, p in (("/vms", "VM.Audit"), ("/", "Sys.Audit")) if not holds(rights, path, p)]
    lacking += [f"VM.Audit on {path}" for path, held in rights.items() if path.startswith("/vms/") and "VM.Audit" not in held]
    if lacking:
        raise Unproven(
            what,
            why=f"the token {token} lacks {', '.join(lacking[:3])}: Proxmox would hide what we may not see",
            remedy="grant it again (`zlh doctor` lists all that is needed); check that the token did not expire",
        )
