"""Command lines and environments of the engine's processes: server, worker, deployment.

Used by ``zlh up``, the demo and the deploy playbook's units (through ``zlh``); starts nothing itself. Every environment is complete: what
the caller has as ``PREFECT_*`` is dropped, so that a developer's own profile changes nothing. No secret is in an argv.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from flows.domain.operation import Queue
from flows.settings import EngineSettings

#: Days that events and finished runs are kept; a task run is about 27 KB of SQLite.
RETENTION_DAYS = 14
#: Seconds between two heartbeats of a flow run, the engine's minimum.
HEARTBEAT_S = 30


def server_argv() -> list[str]:
    """The Prefect server in the foreground; address and database come from its environment."""
    return [sys.executable, "-m", "flows.clients.engine_server"]


def server_env(directory: Path, settings: EngineSettings, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """SQLite in ``directory``, listening on the address of ``settings.url`` alone, its auth string required, asking no host outside.

    Holds none of our ``ZLH_*`` settings: the server needs no secret of ours but the auth string.
    """
    address = urlsplit(settings.url)
    return {
        **client_env(directory, settings, environ),
        "PREFECT_SERVER_API_HOST": address.hostname or "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(address.port or 4200),
        **({"PREFECT_SERVER_API_AUTH_STRING": auth} if (auth := settings.auth.get_secret_value()) else {}),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{directory.resolve()}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(RETENTION_DAYS * 86_400),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"P{RETENTION_DAYS}D",
        # Ten minutes of sweeps ahead instead of an hour: fewer rows to delete at each deployment.
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": "PT10M",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    }


def worker_argv(settings: EngineSettings, *, name: str, queues: Sequence[Queue] = (), limit: int | None = None) -> list[str]:
    """A process worker of our pool for the given queues (none: all). Prefetching would hold runs in Pending before they are due."""
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--name", name, "--pool", settings.pool, "--type", "process"]
    argv += ["--prefetch-seconds", "0", "--install-policy", "never", "--no-create-pool-if-not-found"]
    for queue in queues:
        argv += ["--work-queue", queue.value]
    return [*argv, "--limit", str(limit)] if limit else argv


def worker_env(directory: Path, settings: EngineSettings, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The worker's environment, which its flow runs inherit: the caller's own (``ZLH_*`` included), and the engine's."""
    environ = os.environ if environ is None else environ
    return {
        **_without_prefect(environ),
        **client_env(directory, settings, environ),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "0",
        "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
        # For the seconds in which `zlh engine reset` has thrown the pool away and not made it anew: a heartbeat then would end the worker.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "404",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "PYTHONUNBUFFERED": "1",
    }


def deploy_argv(prefect_file: Path) -> list[str]:
    """Deploys everything, without a question."""
    return [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)]


def reset_argv() -> list[str]:
    """Drops and makes anew every table of the database that its environment names (:func:`server_env`), also while the server runs."""
    return [sys.executable, "-m", "prefect", "--no-prompt", "server", "database", "reset", "-y"]


def client_env(directory: Path, settings: EngineSettings, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """For any Prefect process: the caller's environment without ``PREFECT_*`` and ``ZLH_*``, our server and credential, no telemetry."""
    environ = os.environ if environ is None else environ
    auth = settings.auth.get_secret_value()
    return {
        **{key: value for key, value in _without_prefect(environ).items() if not key.startswith("ZLH_")},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]),
        "PREFECT_HOME": str(directory.resolve()),
        "PREFECT_API_URL": settings.url.rstrip("/"),
        **({"PREFECT_API_AUTH_STRING": auth} if auth else {}),
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "DO_NOT_TRACK": "1",
    }


def _without_prefect(environ: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not key.startswith("PREFECT_")}
