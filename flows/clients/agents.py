"""The agents' client: :class:`flows.domain.ports.AgentWriter`. Built by ``bootstrap``; the sweep probes with it, steps and repairs act.

Reads are tried twice, mutating calls are sent once and carry the lease token. A 401 is answered with the two neighbouring versions of
the server's own token: a restored database may be behind, a rotation may be under way.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence

from flows.clients import agent_answers
from flows.clients.agent_fanout import FanOut
from flows.clients.agent_http import AgentHttp, Failure, NoReply, Reply
from flows.clients.agent_token import agent_token
from flows.clients.http import decode_object, detail, fit, is_loopback
from flows.domain.agent import AgentStatus
from flows.domain.known import Known, Unknown
from flows.domain.server import ContainerType, Server
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadAnswer,
    BadInput,
    Busy,
    Conflict,
    Fenced,
    MisconfiguredSetting,
    NotFound,
    RateLimited,
    Unauthorized,
    Unreachable,
)
from flows.settings import AgentSettings

LEASE_HEADER = "X-ZLH-Lease-Token"
#: Seconds for all probes of a sweep, unless told.
PROBE_S = 15.0
#: Begins the reason of Unknown where an agent is there and not to be trusted.
DISTRUSTED = "distrusted: "


class AgentClient:
    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._http: AgentHttp | None = None
        self._trusts, self._looked_at = 0, 0.0
        self._retired: list[AgentHttp] = []

    async def close(self) -> None:
        for http in [*self._retired, *([self._http] if self._http else [])]:
            await http.close()
        self._http, self._retired = None, []

    # The fan-out

    async def probe(self, servers: Sequence[Server], *, within_s: float = PROBE_S) -> Mapping[str, Known[AgentStatus] | Unknown]:
        """See the protocol. An entry for every server, after ``within_s`` seconds at the latest: who was not reached until then is Unknown.

        Raises MisconfiguredSetting: without our own secrets in order nobody is probed.
        """
        if not servers:
            return {}
        self._looked_at = 0.0
        self._transport()
        for server in servers:
            self._url(server, "/status")
        agent_token(self._settings.master_secret, servers[0].id, max(1, servers[0].token_version))
        return await FanOut(self._probe, self._settings.timeout_s, self._settings.concurrency).run(servers, within_s)

    async def _probe(self, server: Server, timeout_s: float) -> Known[AgentStatus] | Unknown | None:
        """None: no answer, worth another try."""
        try:
            reply = await self._get(server, "/status", timeout_s)
            answer = agent_answers.status(reply.body, _what(server, "/status"))
        except NoReply as error:
            if error.failure in (Failure.UNSENT, Failure.SILENT):
                return None
            return Unknown(f"{DISTRUSTED}{error.why}" if error.failure is Failure.UNTRUSTED else error.why)
        except Unauthorized as error:
            return Unknown(f"{DISTRUSTED}{error.why}")
        except (BadAnswer, Unreachable) as error:
            return Unknown(error.why)
        if answer.server_id != server.id:
            return Unknown(f"{DISTRUSTED}it says it is {answer.server_id[:64]}")
        return Known(answer)

    # Single calls

    async def status(self, server: Server) -> AgentStatus:
        return self._status(server, await self._read(server, "/status"))

    async def health(self, server: Server) -> Mapping[str, object]:
        what = _what(server, "/health")
        answer = agent_answers.health((await self._read(server, "/health")).body, what)
        _identify(server, str(answer["server_id"]), what)
        return answer

    async def ready(self, server: Server) -> tuple[bool, str]:
        """Identity is asked for at the same time: ``/ready`` does not name it."""
        reply, _ = await asyncio.gather(self._read(server, "/ready", unready=True), self.health(server))
        if reply.status == 200:
            return True, ""
        return False, detail(reply.body) or "not ready"

    async def start(self, server: Server, token: int) -> None:
        await self._order(server, "start", token)

    async def stop(self, server: Server, token: int) -> None:
        await self._order(server, "stop", token)

    async def restart(self, server: Server, token: int) -> None:
        await self._order(server, "restart", token)

    async def _order(self, server: Server, action: str, token: int) -> None:
        """A developer container has nothing to start but its code-server."""
        if server.ctype is ContainerType.DEV and not server.code_server:
            return
        path = f"/game/{action}" if server.ctype is ContainerType.GAME else f"/dev/codeserver/{action}"
        what = _what(server, path)
        try:
            reply = await self._authenticated(server, "POST", path, self._settings.timeout_s, {LEASE_HEADER: str(token)})
        except NoReply as error:
            if error.failure is Failure.UNSENT:
                raise Unreachable(what, why=error.why, remedy=_look(server)) from error
            if error.failure is Failure.UNTRUSTED:
                raise _untrusted(what, error) from error
            raise AmbiguousEffect(what, why=error.why, remedy="look at its status before acting again") from error
        if 200 <= reply.status < 300:
            return
        raise self._refusal(server, what, reply, token)

    def _refusal(self, server: Server, what: str, reply: Reply, token: int) -> AutomationError:
        why = detail(reply.body, *self._secrets(server)) or f"status {reply.status}"
        if reply.status == 412:
            why = f"lease token {token} is older than what the agent has seen: {why}"
            return Fenced(what, why=why, remedy="if nobody newer holds the server: was the database's clock set back?")
        if reply.status == 409:
            return Busy(what, why=why) if "operation" in _problem(reply.body) else Conflict(what, why=why)
        if reply.status == 503:
            return Busy(what, why=why, retry_after=_seconds(reply.retry_after))
        if reply.status == 429:
            return RateLimited(what, why=why, retry_after=_seconds(reply.retry_after))
        if reply.status in (400, 422, 428):
            return BadInput(LEASE_HEADER if reply.status == 428 else "request", token, why=f"{what}: {why}")
        if reply.status == 404:
            return NotFound(what, why=why, remedy="the agent is too old for this call: deploy the present one")
        if reply.status >= 500:
            return AmbiguousEffect(what, why=f"{reply.status}: {why}", remedy="look at its status before acting again")
        return BadAnswer(what, why=f"status {reply.status}")

    # One exchange

    async def _read(self, server: Server, path: str, *, unready: bool = False) -> Reply:
        """A GET, tried again once. Raises Unreachable, Unauthorized or BadAnswer. ``unready``: a 503 is an answer."""
        what = _what(server, path)
        for last in (False, True):
            try:
                return await self._get(server, path, self._settings.timeout_s, unready=unready)
            except NoReply as error:
                if error.failure is Failure.UNTRUSTED:
                    raise _untrusted(what, error) from error
                if error.failure is Failure.OVERSIZED:
                    raise BadAnswer(what, why=error.why) from error
                if last:
                    raise Unreachable(what, why=error.why, remedy=_look(server)) from error
        raise AssertionError("returns or raises")

    async def _get(self, server: Server, path: str, timeout_s: float, *, unready: bool = False) -> Reply:
        """Raises NoReply, Unauthorized, Unreachable (5xx), BadAnswer."""
        reply = await self._authenticated(server, "GET", path, timeout_s, {})
        if reply.status == 200 or (unready and reply.status == 503):
            return reply
        what, why = _what(server, path), f"status {reply.status} {detail(reply.body, *self._secrets(server))}".strip()
        if reply.status >= 500:
            raise Unreachable(what, why=why, remedy=_look(server))
        raise BadAnswer(what, why=why)

    async def _authenticated(self, server: Server, method: str, path: str, timeout_s: float, headers: Mapping[str, str]) -> Reply:
        """A 401 has had no effect: the neighbouring token versions are tried. Raises NoReply, Unauthorized."""
        http, url = self._transport(), self._url(server, path)
        version = max(1, server.token_version)
        for candidate in (version, version + 1, version - 1):
            if candidate < 1:
                continue
            token = agent_token(self._settings.master_secret, server.id, candidate).get_secret_value()
            reply = await http.exchange(method, url, token, headers, timeout_s)
            if reply.status != 401:
                return reply
        raise Unauthorized(
            _what(server, path),
            why=f"it refuses our token in version {version} and both neighbours (401)",
            remedy="check ZLH_AGENT__MASTER_SECRET; deploy the agent again if it lost its token",
        )

    def _status(self, server: Server, reply: Reply) -> AgentStatus:
        what = _what(server, "/status")
        answer = agent_answers.status(reply.body, what)
        _identify(server, answer.server_id, what)
        return answer

    def _secrets(self, server: Server) -> list[str]:
        """What an answer might echo."""
        version, master = max(1, server.token_version), self._settings.master_secret
        return [agent_token(master, server.id, v).get_secret_value() for v in (version, version + 1, max(1, version - 1))]

    def _url(self, server: Server, path: str) -> str:
        if not self._settings.tls and not is_loopback(server.address):
            raise MisconfiguredSetting(
                "ZLH_AGENT__TLS",
                why=f"is off, and {server.name} at {server.address} is not on loopback: its token would cross the network in clear",
                remedy="set ZLH_AGENT__TLS=true",
            )
        host = f"[{server.address}]" if ":" in server.address else server.address
        return f"http{'s' if self._settings.tls else ''}://{host}:{self._settings.port}{path}"

    def _transport(self) -> AgentHttp:
        """Built anew where the CA on disk changed: a rotation reaches processes that live long. Looks once a second at most."""
        now = time.monotonic()
        if self._http is not None and now - self._looked_at < 1.0:
            return self._http
        self._looked_at, stamp = now, 0
        if self._settings.tls:
            try:
                stamp = os.stat(self._settings.ca_dir / "ca.pem").st_mtime_ns
            except OSError:
                stamp = -1  # building says what is wrong
        if self._http is None or stamp != self._trusts:
            fresh = AgentHttp(self._settings)
            if self._http is not None:
                self._retired.append(self._http)  # calls under way still need it
            self._http, self._trusts = fresh, stamp
        return self._http


def _what(server: Server, path: str) -> str:
    return f"agent of {server.name} ({server.address}) {path}"


def _look(server: Server) -> str:
    return f"look at it: pct exec {server.vmid} -- systemctl status zlh-agent"


def _identify(server: Server, answered: str, what: str) -> None:
    if answered != server.id:
        raise BadAnswer(
            what, why=f"another identity: it says it is {fit(answered)[:64]}, not {server.id}", remedy="two containers may share the address"
        )


def _untrusted(what: str, error: NoReply) -> BadAnswer:
    return BadAnswer(what, why=error.why, remedy="deploy the agent again: its certificate expired, or is another's; check ZLH_AGENT__CA_DIR")


def _problem(body: bytes) -> Mapping[str, object]:
    try:
        return decode_object("", body)
    except BadAnswer:
        return {}


def _seconds(header: str) -> float | None:
    return float(header) if header.isascii() and header.isdigit() and len(header) < 6 else None
