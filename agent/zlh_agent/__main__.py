"""``zlh-agent --config FILE``: reads the configuration, wires the parts, serves until TERM. The one place where the parts meet."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from zlh_agent import __version__, durable
from zlh_agent.config import Config, ConfigError, load, load_game
from zlh_agent.fence import Fence
from zlh_agent.jobs import Jobs
from zlh_agent.prepared import Prepared
from zlh_agent.provisioned import Provisioned
from zlh_agent.routes import build
from zlh_agent.serving import Connection
from zlh_agent.supervisor import Supervisor
from zlh_agent.systemd import SystemdUnit

#: Seconds that requests under way get when the agent ends.
LAST_BREATH_S = 3
#: sysexits.h: what systemd shows for a configuration that cannot work.
EX_CONFIG = 78
_MISCONFIGURED = {errno.ENOENT, errno.EACCES, errno.ENOTDIR}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("zlh-agent", description="Looks after the workload of this container.")
    parser.add_argument("--config", type=Path, default=Path("/etc/zlh/agent.toml"), help="configuration, TOML, readable by its owner alone")
    parser.add_argument("--version", action="version", version=f"zlh-agent {__version__}")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        config = load(chosen.config)
        server = uvicorn.Server(_serving(config, application(config)))
    except ConfigError as error:
        sys.stderr.write(f"zlh-agent: {error}\n")
        return EX_CONFIG
    except OSError as error:
        sys.stderr.write(f"zlh-agent: state_dir: {config.state_dir}: {error.strerror}\n")
        return 1
    server.run()
    return 0 if server.started else 1


def application(config: Config) -> Starlette:
    """The parts, wired. Raises ConfigError, and OSError for what may be over at the next try: a full disk, no descriptor left."""
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.tidy(config.state_dir)
        jobs = Jobs(config.state_dir / "jobs.json")
        supervisor = _supervisor(config, jobs) if config.kind == "game" else None
    except OSError as error:
        if error.errno in _MISCONFIGURED:
            raise ConfigError(f"state_dir: {config.state_dir}: {error.strerror}") from error
        raise
    lease, epoch = Fence("lease token", config.state_dir / "lease"), Fence("epoch", config.state_dir / "epoch")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        attaching = asyncio.create_task(supervisor.attach()) if supervisor is not None else None
        yield
        if supervisor is not None and attaching is not None:
            attaching.cancel()
            await supervisor.close()

    return build(config, lease, epoch, jobs, Provisioned(config), supervisor, lifespan)


def _supervisor(config: Config, jobs: Jobs) -> Supervisor:
    prepared = Prepared(lambda: load_game(config.game_file), lambda game: SystemdUnit(game.unit, game.console))
    return Supervisor(config.supervision, jobs, config.state_dir / "game.json", prepared)


def _serving(config: Config, app: Starlette) -> uvicorn.Config:
    """Raises ConfigError for a certificate that does not load."""
    made = uvicorn.Config(
        app,
        host=config.bind,
        port=config.port,
        loop="zlh_agent.serving:Loop",
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=LAST_BREATH_S,
        ssl_certfile=config.certificate,
        ssl_keyfile=config.key,
    )
    try:
        made.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"certificate or key: {config.certificate}, {config.key}: {error}") from error
    return made


if __name__ == "__main__":
    sys.exit(main())
