"""What the two listeners need, put together once by ``bootstrap`` (and by tests). No client is built here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flows.api.catalog_cache import CatalogCache
from flows.api.limits import SlidingWindow
from flows.api.token_cache import TokenCache
from flows.api.views import Players
from flows.decide.placement import place
from flows.domain.event import Event, Route
from flows.domain.intake import Ranges
from flows.domain.node import NodeUsage
from flows.domain.placement import Headroom, Placement, PlacementRequest
from flows.domain.ports import Catalog
from flows.settings import Settings
from flows.state.database import Database


@dataclass(frozen=True)
class ApiDeps:
    """``route`` is the routing table with the operator's calendar. ``catalog`` None: no artifact server is configured, and nothing can
    be checked against it."""

    database: Database
    settings: Settings
    route: Callable[[Event, int], Route]
    catalog: Catalog | None = None
    tokens: TokenCache = field(init=False)
    promoted: CatalogCache = field(init=False)
    rate: SlidingWindow = field(init=False)
    counts: dict[tuple[str, int], int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", TokenCache(self.database))
        object.__setattr__(self, "promoted", CatalogCache(self.catalog))
        object.__setattr__(self, "rate", SlidingWindow(self.settings.api.requests_per_minute))

    @property
    def ranges(self) -> Ranges:
        network, vmid = self.settings.network, self.settings.vmid
        return Ranges(vmid.first, vmid.last, network.pool, network.first, network.gateway, self.operation_ms)

    @property
    def players(self) -> Players:
        return Players(self.settings.dns.zone, self.settings.proxy.player_port)

    @property
    def operation_ms(self) -> int:
        return int(self.settings.timing.operation_s * 1000)

    def place(self, request: PlacementRequest, nodes: Sequence[NodeUsage]) -> Placement:
        p = self.settings.placement
        return place(request, nodes, Headroom(p.memory_headroom_mb, p.memory_headroom_fraction, p.disk_headroom_fraction))
