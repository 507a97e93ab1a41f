"""What the bridge knows between two restarts: registrations, the highest lease token seen per name, the newest epoch."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Backend(BaseModel):
    """A registration. ``address`` is a literal IP address."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
    address: str
    port: int = Field(ge=1, le=65_535)
    lease_token: int = Field(0, ge=0)

    @field_validator("address")
    @classmethod
    def _literal(cls, value: str) -> str:
        return str(ipaddress.ip_address(value))


class Listing(BaseModel):
    """The answer of ``GET /internal/proxy/backends``."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    epoch: int = Field(ge=0)
    complete: bool
    backends: tuple[Backend, ...] = Field(strict=False)


class Superseded(Exception):
    """A lower lease token than this name has seen."""

    def __init__(self, highest: int) -> None:
        super().__init__(highest)
        self.highest = highest


@dataclass
class Backends:
    """A new one is made at every start: nothing survives."""

    started: float = field(default_factory=time.monotonic)
    registered: dict[str, Backend] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    epoch: int = -1
    players: int = 0
    rehydrated_at: float | None = None
    outcome: str = "never"
    rehydrates: dict[str, int] = field(default_factory=dict)
    _clock: int = 0
    _touched: dict[str, int] = field(default_factory=dict)

    @property
    def clock(self) -> int:
        """Counts changes; taken before a listing is asked for."""
        return self._clock

    def put(self, backend: Backend) -> bool:
        """Registers; whether that changed anything. Raises Superseded."""
        self._fence(backend.name, backend.lease_token)
        before = self.registered.get(backend.name)
        self.registered[backend.name] = backend
        return before is None or (before.address, before.port) != (backend.address, backend.port)

    def remove(self, name: str, token: int) -> bool:
        """Deregisters; whether there was something. Raises Superseded."""
        self._fence(name, token)
        return self.registered.pop(name, None) is not None

    def meddle(self, name: str, backend: Backend | None) -> None:
        """A change behind the product's back: no token, no fence."""
        if backend is None:
            self.registered.pop(name, None)
        else:
            self.registered[name] = backend

    def replace(self, listing: Listing, asked_at: int, leave: Collection[str] = ()) -> None:
        """A complete listing becomes the truth, but for names that were changed, or claimed by a newer lease, since it was asked for, and
        for those to ``leave`` as they are: neither added, nor changed, nor removed."""
        listed = {backend.name: backend for backend in listing.backends if backend.name not in leave}
        for name in list(self.registered):
            if name not in listed and name not in leave and self._touched.get(name, 0) <= asked_at:
                del self.registered[name]
        for name, backend in listed.items():
            if self._touched.get(name, 0) > asked_at or backend.lease_token < self.tokens.get(name, 0):
                continue
            self.registered[name] = backend
            self.tokens[name] = backend.lease_token
        self.epoch = listing.epoch

    def note(self, outcome: str) -> None:
        """Remembers how a rehydrate ended."""
        self.rehydrated_at, self.outcome = time.time(), outcome
        kind = outcome.split(":", 1)[0]
        self.rehydrates[kind] = self.rehydrates.get(kind, 0) + 1

    def _fence(self, name: str, token: int) -> None:
        if token < self.tokens.get(name, 0):
            raise Superseded(self.tokens[name])
        self.tokens[name] = token
        self._clock += 1
        self._touched[name] = self._clock
