"""Who calls, and what the caller may do. The deepest access-control entry on a path decides, as in Proxmox."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flows.lab.proxmox.errors import PveError

ALL = frozenset(
    "Datastore.Allocate Datastore.AllocateSpace Datastore.AllocateTemplate Datastore.Audit Group.Allocate Mapping.Audit "
    "Mapping.Modify Mapping.Use Permissions.Modify Pool.Allocate Pool.Audit Realm.Allocate Realm.AllocateUser SDN.Allocate SDN.Audit SDN.Use "
    "Sys.AccessNetwork Sys.Audit Sys.Console Sys.Incoming Sys.Modify Sys.PowerMgmt Sys.Syslog User.Modify VM.Allocate VM.Audit VM.Backup "
    "VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk VM.Config.HWType VM.Config.Memory VM.Config.Network "
    "VM.Config.Options VM.Console VM.Migrate VM.PowerMgmt VM.Snapshot VM.Snapshot.Rollback".split()
)
#: Paths for which ``/access/permissions`` answers even without an entry of their own.
_BASE_PATHS = ("/", "/access", "/access/groups", "/access/realm", "/mapping", "/nodes", "/pool", "/sdn", "/storage", "/vms")


@dataclass(frozen=True)
class Identity:
    """``user`` is ``name@realm``; ``token`` the token's name, None for a ticket. ``root`` is literally root@pam, never a token of it."""

    user: str
    token: str | None = None
    rights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    root: bool = False

    @property
    def auth_id(self) -> str:
        return f"{self.user}!{self.token}" if self.token else self.user

    def on(self, path: str) -> frozenset[str]:
        """The privileges on a path."""
        if self.root:
            return ALL
        while True:
            if path in self.rights:
                return frozenset(self.rights[path])
            if path == "/":
                return frozenset()
            path = path.rpartition("/")[0] or "/"

    def may(self, path: str, *privileges: str, any_of: bool = False) -> bool:
        held = self.on(path)
        return (any if any_of else all)(p in held for p in privileges)

    def require(self, path: str, *privileges: str, any_of: bool = False) -> None:
        """Raises PveError 403 with Proxmox's text."""
        if not self.may(path, *privileges, any_of=any_of):
            raise PveError(403, f"Permission check failed ({path}, {'|'.join(privileges)})")

    def listing(self, paths: Iterable[str] = ()) -> dict[str, dict[str, int]]:
        """``/access/permissions``: path → privilege → propagates. A path without any is left out."""
        wanted = sorted({*_BASE_PATHS, *self.rights, *paths})
        return {path: dict.fromkeys(sorted(self.on(path)), 1) for path in wanted if self.on(path)}
