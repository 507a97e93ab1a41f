"""Playbooks on the simulated fleet: the lab acts them out, this streams what it says. In place of :mod:`flows.clients.playbooks`.

Constructed by ``bootstrap`` where ``ZLH_ANSIBLE__RUNNER=lab``. The lab stops acting when the connection drops, as a playbook ends with its
supervisor; a stream that ends without its last line leaves the effect unknown.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx

from flows.domain.ports import Play, PlayResult
from flows.errors import AmbiguousEffect, BadAnswer, BadInput, DeadlineExceeded, MisconfiguredSetting, Unauthorized, Unreachable
from flows.settings import AnsibleSettings

#: Longest line that is read, bytes.
MAX_LINE = 262_144
#: Seconds to connect.
CONNECT_S = 5.0


class LabRunner:
    """Implements :class:`flows.domain.ports.PlaybookRunner`. A connection per run: cancelling the run closes it."""

    def __init__(self, settings: AnsibleSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        if not settings.lab_url:
            raise MisconfiguredSetting("ZLH_ANSIBLE__LAB_URL", why="is empty while ZLH_ANSIBLE__RUNNER is lab", remedy="run `zlh lab up`, or set it")
        self._url = f"{settings.lab_url.rstrip('/')}/playbooks"
        self._token = settings.lab_token
        self._transport = transport

    async def close(self) -> None:
        """Nothing is kept open between runs."""

    async def run(self, play: Play, on_event: Callable[[str], None] | None = None) -> PlayResult:
        """Raises Unreachable (the lab never had the order), AmbiguousEffect (the stream broke), DeadlineExceeded, Unauthorized, BadInput
        (the lab refused the order) or BadAnswer."""
        what = f"play {play.playbook} on {play.server.name} ({play.server.address})"
        try:
            async with asyncio.timeout(play.timeout_s):
                return await self._run(what, play, on_event or (lambda _: None))
        except TimeoutError as error:
            raise DeadlineExceeded(what, why=f"not done after {play.timeout_s:g} s", remedy="look at the lab: `zlh lab status`") from error

    async def _run(self, what: str, play: Play, on_event: Callable[[str], None]) -> PlayResult:
        headers = {"Authorization": f"Bearer {self._token.get_secret_value()}"}
        timeout = httpx.Timeout(None, connect=CONNECT_S)  # the play's own deadline holds for the rest
        async with httpx.AsyncClient(transport=self._transport, timeout=timeout, trust_env=False) as http:
            try:
                async with http.stream("POST", self._url, json=_order(play), headers=headers) as response:
                    await _admitted(what, response)
                    async for event in _events(what, response):
                        if event.get("event") == "task":
                            on_event(f"TASK {event.get('task', '')}")
                        elif event.get("event") == "end":
                            return _result(what, event)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                why = f"no connection ({type(error).__name__})"
                raise Unreachable(what, why=why, remedy="check ZLH_ANSIBLE__LAB_URL and `zlh lab status`") from error
            except httpx.HTTPError as error:
                raise AmbiguousEffect(what, why=f"the connection broke ({type(error).__name__})", remedy="look before acting again") from error
        raise AmbiguousEffect(what, why="the stream ended before the result", remedy="look before acting again")


def _order(play: Play) -> dict[str, Any]:
    server = play.server
    return {
        "playbook": play.playbook,
        "server": {
            "id": server.id,
            "name": server.name,
            "ctype": server.ctype.value,
            "vmid": server.vmid,
            "address": server.address,
            "hostname": server.hostname,
        },
        "variables": dict(play.variables),
        "secrets": dict(play.secrets),
        "timeout_s": play.timeout_s,
    }


async def _admitted(what: str, response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        return
    body = (await response.aread())[:500].decode(errors="replace")
    if response.status_code in (401, 403):
        raise Unauthorized(what, why="the lab refused our token", remedy="set ZLH_ANSIBLE__LAB_TOKEN to the lab's control token")
    if response.status_code in (400, 404, 422):
        raise BadInput("play", what, why=f"the lab refused the order: {body}")
    raise Unreachable(what, why=f"the lab answered {response.status_code}: {body}", remedy="see the lab's log")


async def _events(what: str, response: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
    buffer = b""
    async for chunk in response.aiter_raw():
        *lines, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > MAX_LINE:
            raise BadAnswer(what, why=f"a line is longer than {MAX_LINE} bytes")
        for line in lines:
            if line.strip():
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise BadAnswer(what, why="a line is not JSON") from error
                if not isinstance(event, Mapping):
                    raise BadAnswer(what, why="a line is no object")
                yield event


def _result(what: str, event: Mapping[str, Any]) -> PlayResult:
    facts = event.get("facts") or {}
    if not isinstance(event.get("ok"), bool) or not isinstance(event.get("changed"), bool) or not isinstance(facts, Mapping):
        raise BadAnswer(what, why="the last line lacks ok, changed or facts")
    return PlayResult(
        ok=event["ok"],
        changed=event["changed"],
        unreachable=event.get("unreachable") is True,
        facts=facts,
        tail=str(event.get("tail", "")),
        failed_task=str(event.get("failed_task", "")),
    )
