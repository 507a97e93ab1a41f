"""The HTTPS face: who calls, which method, may they, which node, are the parameters right, then the method itself.

The order is that of PVE's HTTP server: a bad token is refused before an unknown method, an unknown method before a missing right,
a missing right before a dead node, a dead node before a wrong parameter.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from typing import Any

from aiohttp import web

from flows.lab.faults import Fault, Mode, cut
from flows.lab.proxmox import api_access, api_cluster, api_nodes, api_storage, clone, config, lxc, power, snapshots, task_api, vzdump
from flows.lab.proxmox.cluster import Cluster
from flows.lab.proxmox.errors import PveError
from flows.lab.proxmox.params import verify
from flows.lab.proxmox.rights import Identity
from flows.lab.proxmox.routing import Answer, Call, Route, find
from flows.lab.substance import SubstanceError

log = logging.getLogger(__name__)
PREFIX = "/api2/json"
#: Importing these fills the table of methods.
METHODS = (api_access, api_cluster, api_nodes, api_storage, clone, config, lxc, power, snapshots, task_api, vzdump)
_BEFORE = (Mode.UNREACHABLE, Mode.ERROR, Mode.HANG, Mode.EXPIRED)
_WITHOUT_IDENTITY = "/access/ticket"


class Face:
    """Answers every request; plays the faults that are armed for ``proxmox``."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix(PREFIX) or "/"
        text = f"{request.method} {path}"
        entry: dict[str, Any] = {"at": time.time(), "call": text, "user": "", "status": "cut"}
        self.cluster.calls.append(entry)
        if request.method != "GET":
            self.cluster.writes.append(entry)
        if not any(node.online for node in self.cluster.world.nodes.values()):
            return cut(request)
        late = self.cluster.faults.hit("proxmox", text, Mode.SLOW, Mode.HOLD)
        if late is not None and late.mode is Mode.HOLD:
            await request.read()  # it is kept: what has arrived takes effect, also when its sender has gone meanwhile
        await self.cluster.faults.held(late)
        if late is not None and late.mode is Mode.SLOW:
            await asyncio.sleep(late.seconds)
        try:
            await self._fault_before(request, text)
            response = await self._answer(request, path, text, entry)
        except PveError as error:
            await asyncio.sleep(error.delay_s)
            response = self._refusal(error)
        except SubstanceError as error:
            response = self._refusal(PveError(500, str(error)))
        except Exception as error:  # the face's boundary: a defect of the lab must answer as Proxmox's own defects do, and be seen
            log.exception("%s", text)
            response = self._refusal(PveError(500, f"lab defect: {error!r}"))
        if self.cluster.faults.hit("proxmox", text, Mode.LOSE_ANSWER) is not None:
            return cut(request)
        entry["status"] = response.status
        return response

    async def _fault_before(self, request: web.Request, text: str) -> None:
        fault: Fault | None = self.cluster.faults.hit("proxmox", text, *_BEFORE)
        if fault is None:
            return
        if fault.mode is Mode.UNREACHABLE:
            cut(request)
        if fault.mode is Mode.HANG:
            await asyncio.sleep(3600)
        if fault.mode is Mode.EXPIRED:
            raise self.cluster.auth.refuse("token expired")
        if fault.status == 401:
            raise self.cluster.auth.refuse(fault.message)
        raise PveError(fault.status, fault.message, bare=fault.status >= 595)

    async def _answer(self, request: web.Request, path: str, text: str, entry: dict[str, Any]) -> web.StreamResponse:
        if not request.path.startswith(PREFIX):
            return web.Response(text="the lab's Proxmox-shaped face; the API is below /api2/json\n")
        given = await _parameters(request)
        identity = self._identify(request, path, text)
        entry["user"] = identity.auth_id
        route, in_path = find(request.method, path)
        given.update(in_path)
        route.check(identity, given)
        if "node" in given and "{node}" in route.template:
            given["node"] = await self._enter(given["node"])
        call = Call(self.cluster, identity, text, verify(route.schema, given))
        call.quorate = self.cluster.quorate() and call.fault(Mode.NO_QUORUM) is None
        if request.method != "GET" and not call.quorate and path != _WITHOUT_IDENTITY:
            raise PveError(500, "cluster not ready - no quorum?")
        return await self._success(request, route, call)

    def _identify(self, request: web.Request, path: str, text: str) -> Identity:
        if path == _WITHOUT_IDENTITY and request.method == "POST":
            return Identity("")
        identity = self.cluster.auth.identify(request.method, request.headers, request.cookies)
        if self.cluster.faults.hit("proxmox", text, Mode.RIGHTS_LOST) is not None:
            # The entries for guests and storages are gone, the rest is there: every call succeeds, and the lists are empty.
            return replace(identity, rights={"/": ("Sys.Audit",), "/vms": (), "/storage": ()}, root=False)
        return identity

    async def _enter(self, name: str) -> str:
        """The node that a path names. Raises PveError as the proxying node would."""
        if name == "localhost":
            return self.cluster.entrance
        node = self.cluster.world.nodes.get(name)
        if node is None:
            raise PveError(500, f"hostname lookup '{name}' failed - failed to get address info for: {name}: Name or service not known")
        if not node.online:
            raise PveError(595, "No route to host", bare=True, delay_s=self.cluster.times.proxy_timeout_s)
        return name

    async def _success(self, request: web.Request, route: Route, call: Call) -> web.StreamResponse:
        result = await route.handler(call)
        beside = dict(result.beside) if isinstance(result, Answer) else {}
        data = result.data if isinstance(result, Answer) else result
        body = json.dumps({"data": data, **beside}).encode()
        headers = {"Cache-Control": "max-age=0", "Server": "pve-api-daemon/3.0"}
        if not route.partial and call.fault(Mode.PARTIAL) is not None:
            response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body)), "Content-Type": "application/json;charset=UTF-8"})
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            return cut(request)
        return web.Response(body=body, headers=headers, content_type="application/json", charset="UTF-8")

    def _refusal(self, error: PveError) -> web.Response:
        phrase = " ".join(error.message.split("\n", 1)[0].split()) or "Error"
        if error.bare:
            return web.Response(status=error.status, reason=phrase)
        body: dict[str, Any] = {"data": None, "message": error.message.rstrip("\n") + "\n"}
        if error.errors:
            body["errors"] = dict(error.errors)
        return web.Response(status=error.status, reason=phrase, text=json.dumps(body), content_type="application/json")


async def _parameters(request: web.Request) -> dict[str, str]:
    """Query and body as strings. A key that is repeated becomes a list in Proxmox's sense: its values joined by NUL."""
    found: dict[str, list[str]] = {}
    pairs: list[tuple[str, Any]] = list(request.query.items())
    if request.body_exists:
        if request.method in ("GET", "DELETE"):
            if await request.read():
                raise PveError(501, f"Unexpected content for method '{request.method}'")
        elif request.content_type == "application/json":
            try:
                body = await request.json()
            except ValueError:
                raise PveError(400, "malformed JSON string") from None
            if not isinstance(body, dict):
                raise PveError(400, "malformed JSON string")
            pairs += body.items()
        else:
            pairs += (await request.post()).items()
    for key, value in pairs:
        for item in value if isinstance(value, list) else [value]:
            found.setdefault(key, []).append(str(int(item)) if isinstance(item, bool) else str(item))
    return {key: "\0".join(values) for key, values in found.items()}
