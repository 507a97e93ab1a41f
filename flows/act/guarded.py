"""Proxmox behind a lease. A token in a database cannot fence it, so a mutating call begins only while the lease outlasts it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from flows.domain.ports import CloneSpec, ContainerSpec, ProxmoxWriter

R = TypeVar("R")


class GuardedProxmox:
    """Mutating calls of one holder. ``room`` raises unless a whole call still fits under the lease."""

    def __init__(self, proxmox: ProxmoxWriter, room: Callable[[], Awaitable[None]]) -> None:
        self._proxmox, self._room = proxmox, room

    async def _guarded(self, call: Callable[[], Awaitable[R]]) -> R:
        await self._room()
        return await call()

    async def clone(self, spec: CloneSpec) -> str:
        return await self._guarded(lambda: self._proxmox.clone(spec))

    async def configure(self, node: str, vmid: int, spec: ContainerSpec) -> str | None:
        return await self._guarded(lambda: self._proxmox.configure(node, vmid, spec))

    async def start(self, node: str, vmid: int) -> str | None:
        return await self._guarded(lambda: self._proxmox.start(node, vmid))

    async def stop(self, node: str, vmid: int) -> str | None:
        return await self._guarded(lambda: self._proxmox.stop(node, vmid))

    async def shutdown(self, node: str, vmid: int, timeout_s: int) -> str | None:
        return await self._guarded(lambda: self._proxmox.shutdown(node, vmid, timeout_s))

    async def destroy(self, node: str, vmid: int) -> str:
        return await self._guarded(lambda: self._proxmox.destroy(node, vmid))
