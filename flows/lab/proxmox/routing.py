"""The table of methods. Each module of the package adds its own with :func:`route`; the face looks them up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.lab.faults import Fault, Mode
from flows.lab.proxmox.cluster import Cluster
from flows.lab.proxmox.errors import PveError
from flows.lab.proxmox.params import NODE, VMID, P
from flows.lab.proxmox.rights import Identity
from flows.lab.proxmox.tasks import Body
from flows.lab.world import LabContainer


@dataclass
class Call:
    """One verified request. ``text`` is ``METHOD /path`` below ``/api2/json``, what faults match against."""

    cluster: Cluster
    identity: Identity
    text: str
    params: dict[str, Any]
    quorate: bool = True

    @property
    def node(self) -> str:
        return str(self.params["node"])

    @property
    def vmid(self) -> int:
        return int(self.params["vmid"])

    def container(self) -> LabContainer:
        return self.cluster.container(self.node, self.vmid)

    def fault(self, mode: Mode) -> Fault | None:
        return self.cluster.faults.hit("proxmox", self.text, mode)

    def spawn(self, kind: str, body: Body, *, id_: int | str | None = None, may_die: bool = False) -> str:
        """Starts a task of the caller's and returns its UPID. A fault that waits for one is taken along."""
        sentence = self.fault(Mode.FAIL_TASK)
        dies = may_die and sentence is None and self.fault(Mode.DIE_LOCKED) is not None
        id_ = self.vmid if id_ is None else id_
        return self.cluster.tasks.spawn(self.node, kind, str(id_), self.identity, body, sentence=sentence, dies=dies).upid

    async def changed(self, vmid: int | None = None) -> None:
        await self.cluster.world.changed(self.vmid if vmid is None else vmid)


@dataclass(frozen=True)
class Answer:
    """Data with something beside it in the envelope, as task logs have their ``total``."""

    data: Any
    beside: Mapping[str, Any] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Any]]
#: ``(path, privileges…)``; all of them, or any of them where the first privilege is ``"any"``.
Permission = tuple[str, ...]


@dataclass(frozen=True)
class Route:
    method: str
    template: str
    handler: Handler
    schema: Mapping[str, P]
    permissions: tuple[Permission, ...]
    partial: bool

    def check(self, identity: Identity, given: Mapping[str, str]) -> None:
        """Raises PveError 403. A path that names a parameter which was not given is left to the verification."""
        for path, *privileges in self.permissions:
            try:
                place = path.format(**given)
            except KeyError:
                continue
            any_of = privileges[0] == "any"
            identity.require(place, *(privileges[1:] if any_of else privileges), any_of=any_of)


ROUTES: list[Route] = []
_TEXT = P(optional=False)
_IN_PATH = {"node": NODE, "vmid": VMID, "upid": _TEXT, "storage": _TEXT, "snapname": _TEXT, "poolid": _TEXT, "volume": _TEXT}


def route(
    method: str, template: str, *permissions: Permission, params: Mapping[str, P] | None = None, partial: bool = False
) -> Callable[[Handler], Handler]:
    """Registers a handler. ``partial`` says that it plays the fault of that name itself."""

    def register(handler: Handler) -> Handler:
        named = {part[1:-1] for part in template.split("/") if part.startswith("{")}
        schema = {**{name: _IN_PATH[name] for name in sorted(named)}, **(params or {})}
        ROUTES.append(Route(method, template, handler, schema, permissions, partial))
        return handler

    return register


def find(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route and the parameters in the path; literal parts win. A volume is all that remains. Raises PveError 501."""
    parts = path.strip("/").split("/")
    best: tuple[int, Route, dict[str, str]] | None = None
    for candidate in ROUTES:
        wanted = candidate.template.strip("/").split("/")
        given = parts
        if wanted[-1] == "{volume}" and len(parts) > len(wanted):
            given = [*parts[: len(wanted) - 1], "/".join(parts[len(wanted) - 1 :])]
        if candidate.method != method or len(wanted) != len(given):
            continue
        found = {w[1:-1]: p for w, p in zip(wanted, given, strict=True) if w.startswith("{")}
        if any(not w.startswith("{") and w != p for w, p in zip(wanted, given, strict=True)):
            continue
        if best is None or len(found) < best[0]:
            best = (len(found), candidate, found)
    if best is None:
        raise PveError(501, f"Method '{method} {path}' not implemented")
    return best[1], best[2]
