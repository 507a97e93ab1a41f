"""The HTTP face. Every answer is JSON, every refusal a problem document; what the control plane reads is in its ``flows/clients/agents.py``.

``GET /health /ready /status /jobs /jobs/{id} /dev/codeserver`` · ``POST /game/{start,stop,restart}``,
``POST /dev/codeserver/{start,stop,restart}`` → 202 ``{"job": {…}}``.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from zlh_agent import __version__, host
from zlh_agent.bearer import Bearer, BodyCap
from zlh_agent.config import Config, NotPrepared
from zlh_agent.fence import LARGEST, Fence, Stale, Unreadable
from zlh_agent.jobs import InProgress, Jobs, NotAttached
from zlh_agent.ping import Pong
from zlh_agent.problem import Refused, problem
from zlh_agent.provisioned import Provisioned
from zlh_agent.supervisor import Supervisor

LEASE_HEADER, EPOCH_HEADER = "X-ZLH-Lease-Token", "X-ZLH-Epoch"
ACTIONS = ("start", "stop", "restart")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_log = logging.getLogger(__name__)


def build(
    config: Config, lease: Fence, epoch: Fence, jobs: Jobs, provisioned: Provisioned, supervisor: Supervisor | None, lifespan: Lifespan[Starlette]
) -> Starlette:
    """``supervisor`` is None in a developer container."""
    face = _Face(config, lease, epoch, jobs, provisioned, supervisor)
    accepted = (config.token, *([config.previous_token] if config.previous_token else []))
    return Starlette(
        routes=[
            Route("/health", face.health),
            Route("/ready", face.ready),
            Route("/status", face.status),
            Route("/jobs", face.jobs),
            Route("/jobs/{id}", face.job),
            Route("/dev/codeserver", face.codeserver),
            *(Route(f"/game/{action}", face.game(action), methods=["POST"]) for action in ACTIONS),
            *(Route(f"/dev/codeserver/{action}", face.dev, methods=["POST"]) for action in ACTIONS),
        ],
        middleware=[Middleware(Bearer, accepted), Middleware(BodyCap, config.max_body_bytes)],
        exception_handlers={HTTPException: _http, Refused: _refused, Exception: _internal},
        lifespan=lifespan,
    )


class _Face:
    def __init__(self, config: Config, lease: Fence, epoch: Fence, jobs: Jobs, provisioned: Provisioned, supervisor: Supervisor | None) -> None:
        self._config, self._lease, self._epoch, self._jobs = config, lease, epoch, jobs
        self._provisioned, self._supervisor = provisioned, supervisor
        self._started_at = time.time()

    async def _look(self, missing: list[str]) -> tuple[str, Pong]:
        """State and readiness. A developer container runs as soon as it is prepared."""
        if self._supervisor is None:
            return ("stopped", Pong(False, "provisioning is not complete")) if missing else ("running", Pong(True))
        pong = await self._supervisor.look()
        return self._supervisor.state, Pong(False, "provisioning is not complete", pong.players) if missing else pong

    async def health(self, request: Request) -> Response:
        return JSONResponse({"version": __version__, "started_at": self._started_at, "server_id": self._config.server_id})

    async def ready(self, request: Request) -> Response:
        _, pong = await self._look(await self._provisioned.missing())
        return JSONResponse({"ready": True}) if pong.ok else problem(503, pong.reason, ready=False, reason=pong.reason)

    async def status(self, request: Request) -> Response:
        missing, game = await self._provisioned.missing(), self._supervisor
        state, pong = await self._look(missing)
        live = game.live if game else None
        return JSONResponse(
            {
                "server_id": self._config.server_id,
                "version": __version__,
                "state": state,
                "ready": pong.ok,
                "reason": pong.reason,
                "operation": live.kind if live else None,
                "job": live.id if live else None,
                "maintenance": False,
                "uptime_s": round(game.uptime_s, 3) if game else round(time.time() - self._started_at, 3) if pong.ok else 0.0,
                "restarts": game.restarts if game else 0,
                "last_crash": game.last_crash if game else None,
                "players": pong.players,
                "memory": host.memory(),
                "disk": host.disk(self._config.state_dir),
                "provisioning_complete": not missing,
                "missing": missing,
            }
        )

    async def jobs(self, request: Request) -> Response:
        wanted = {key: request.query_params[key] for key in ("kind", "state") if key in request.query_params}
        found = [job.as_json() for job in self._jobs.all()]
        return JSONResponse({"jobs": [job for job in found if all(job[key] == value for key, value in wanted.items())]})

    async def job(self, request: Request) -> Response:
        id = request.path_params["id"]
        job = self._jobs.find(id)
        return JSONResponse(job.as_json()) if job else problem(404, f"no job {id[:64]}")

    async def codeserver(self, request: Request) -> Response:
        return problem(409, "code-server is not installed")

    async def dev(self, request: Request) -> Response:
        self._fence(request)
        raise Refused(409, "code-server is not installed")

    def game(self, action: str) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            missing = (
                [] if action == "stop" else await self._provisioned.missing()
            )  # the one thing that takes time comes before the fence, so that nobody gets in between
            return self._act(request, action, missing)

        return handler

    def _act(self, request: Request, action: str, missing: list[str]) -> Response:
        """Fencing first, durably, then the order."""
        self._fence(request)
        game = self._supervisor
        if game is None:
            raise Refused(409, "this is a developer container")
        try:
            if missing and action != "stop":
                self._provisioned.forget()
                game.prepared.load()
                raise Refused(503, "provisioning is not complete", missing=missing, headers={"Retry-After": "5"})
            job, _ = {"start": game.start, "stop": game.stop, "restart": game.restart}[action]()
        except NotPrepared as error:
            raise Refused(409, f"not prepared: {error}", missing=missing) from error
        except NotAttached as error:
            raise Refused(503, str(error), headers={"Retry-After": "2"}) from error
        except InProgress as busy:
            kind, id = busy.job.kind, busy.job.id
            raise Refused(409, f"{kind} is in progress", operation=kind, job=id, headers={"Retry-After": "1"}) from busy
        except OSError as error:
            raise _unwritable(self._config, error) from error
        return JSONResponse({"job": job.as_json()}, 202, {"Location": f"/jobs/{job.id}"})

    def _fence(self, request: Request) -> None:
        """Both numbers are judged before either is written. Raises Refused: 428, 422, 412, 503."""
        lease, epoch = _number(request, LEASE_HEADER), _number(request, EPOCH_HEADER, required=False)
        try:
            if epoch is not None:
                self._epoch.check(epoch)
            self._lease.admit(lease or 0)
            if epoch is not None:
                self._epoch.admit(epoch)
        except Stale as stale:
            raise Refused(412, str(stale), highest=stale.highest) from stale
        except Unreadable as error:
            raise Refused(503, str(error), headers={"Retry-After": "60"}) from error
        except OSError as error:
            raise _unwritable(self._config, error) from error


def _number(request: Request, header: str, *, required: bool = True) -> int | None:
    """Raises Refused: 428 missing, 422 malformed."""
    raw = request.headers.getlist(header)
    if not raw and not required:
        return None
    if not raw:
        raise Refused(428, f"{header} is required")
    if len(raw) > 1 or not raw[0].isascii() or not raw[0].isdigit() or len(raw[0]) > 19 or int(raw[0]) > LARGEST:
        raise Refused(422, f"{header} must be one whole number")
    return int(raw[0])


def _unwritable(config: Config, error: OSError) -> Refused:
    """Nothing was done: an order that cannot be remembered is not carried out."""
    what = "the disk is full: make room" if error.errno in _NO_SPACE else f"{error.strerror}: see the agent's journal"
    _log.error("an order is refused, %s cannot be written: %s", config.state_dir, error)
    return Refused(503, f"not carried out: {config.state_dir} cannot be written, {what}", headers={"Retry-After": "60"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}", headers=error.headers)


async def _internal(request: Request, error: Exception) -> Response:
    """Whatever it was, it is in the journal; the caller learns where to look."""
    return problem(500, f"{type(error).__name__}: see the agent's journal")
