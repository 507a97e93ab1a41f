"""``zlh up``: the whole control plane on one machine: API, Prefect server, worker, dispatcher, watchdog; SQLite, no Redis.

Everything lives in one directory: ``zlh.env`` (generated secrets and addresses, 0600), the database, the engine's home, the CA, logs.
With a fleet of the lab its addresses and credentials are taken into the same file.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from flows.cli.children import Child, ChildDied, Register
from flows.cli.drain import drain, resume
from flows.clients import engine_processes
from flows.clients.ca import CertificateAuthority
from flows.clients.engine_setup import EngineSetup, Healing
from flows.domain.node import Node
from flows.domain.topology import worker_name
from flows.environment import META, merged
from flows.errors import AutomationError, BadInput, Conflict
from flows.lab import launch
from flows.settings import Settings, load
from flows.state import nodes, tokens
from flows.state.database import Database
from flows.state.migrate import upgrade

PROJECT = Path(__file__).resolve().parents[2]

#: Shortened times for trying it out: a sweep every 10 s, a heartbeat every 3 s, a lease of 15 s.
SHORT_TIMES: Mapping[str, str] = {
    "ZLH_TIMING__SWEEP_S": "10",
    "ZLH_TIMING__HEARTBEAT_S": "3",
    "ZLH_TIMING__LEASE_S": "15",
    "ZLH_TIMING__CALL_S": "8",
    "ZLH_TIMING__MARGIN_S": "2",
    "ZLH_TIMING__EPOCH_S": "15",
    "ZLH_TIMING__EPOCH_RENEW_S": "3",
    "ZLH_TIMING__OBSERVE_S": "6",
    "ZLH_TIMING__SWEEP_LIMIT_S": "20",
    "ZLH_TIMING__UNSUBMITTED_S": "15",
    "ZLH_TIMING__READY_POLL_S": "0.3",
    "ZLH_PROXMOX__TIMEOUT_S": "8",
    "ZLH_PROXMOX__POLL_S": "0.3",
    "ZLH_AGENT__TIMEOUT_S": "2",
    "ZLH_NOTIFY__DRAIN_S": "1",
}


#: With short times: seconds after which a run that never starts is given up by the engine, which frees its slot.
SHORT_PENDING_S = 45.0


#: File of a directory that says which fleet it is for.
MARK = "fleet"


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _node(shown: Mapping[str, Any]) -> Node:
    """A node of the lab as placement wants it."""
    return Node(**{field.name: shown[field.name] for field in fields(Node) if field.name != "open"}, open=True)


class Stack:
    """The processes and their directory. ``fleet`` is ``sim`` or ``lxc`` (the lab, started too) or ``none`` (settings come from the
    environment and the file that ``ZLH_ENV_FILE`` names; what they leave open is generated)."""

    short_times: ClassVar[Mapping[str, str]] = SHORT_TIMES

    def __init__(self, directory: Path, *, fleet: str, short: bool = False, say: Callable[[str], None] = print) -> None:
        self.dir = directory.resolve()
        self.fleet, self.short, self.say = fleet, short, say
        self.with_lab = fleet != "none"
        self.env_file = self.dir / "zlh.env"
        self.register = Register(self.dir / "up.json")
        self.children: dict[str, Child] = {}
        self.settings: Settings = Settings()

    @classmethod
    def discard(cls, directory: Path) -> None:
        """Ends whatever a killed predecessor left running in a directory, and removes the directory. Raises BadInput for one that is not empty
        and was not made by a stack with a lab: what else lies there is not ours to remove."""
        stack = cls(directory, fleet="sim")
        if stack.dir.exists() and any(stack.dir.iterdir()) and stack.previous() in (None, "none"):
            raise BadInput("--dir", str(directory), why="holds something else than an earlier run's fleet", remedy="name an empty or a new directory")
        stack.register.clear_leftovers()
        launch.down(stack.dir / "lab")
        shutil.rmtree(stack.dir, ignore_errors=True)

    # -- preparation -----------------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Directory, leftovers, secrets, lab, settings, schema. Raises before anything runs if a setting is wrong."""
        self.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # under nohup and the like; a worker that inherits that ends on no SIGTERM
            signal.signal(signal.SIGINT, signal.default_int_handler)
        previous = self.previous()
        if previous is not None and (previous == "none") == self.with_lab:
            raise Conflict(f"directory {self.dir}", why=f"belongs to fleet {previous}", remedy=f"name it (--fleet {previous}), or another --dir")
        (self.dir / MARK).write_text(f"{self.fleet}\n")
        for name in self.register.clear_leftovers():
            self.say(f"ended {name}, left behind by a killed predecessor")
        if self.with_lab:
            self._forget_lost_fleet()
        values = self._own_values()
        lab_nodes: tuple[Node, ...] = ()
        if self.with_lab:
            control = values["ZLH_API__CONTROL_BIND"]
            state = launch.up(
                self.dir / "lab",
                project_dir=PROJECT,
                backends_url=f"http://{control}/internal/proxy/backends",
                backends_token=values["ZLH_API__CONTROL_TOKEN"],
                fleet=self.fleet,
                say=self.say,
            )
            values |= launch.env(state)
            lab_nodes = tuple(_node(node) for node in state.nodes)
        if self.short:
            values |= self.short_times
        if not self.with_lab:
            given = {k: v for k, v in merged(os.environ).items() if k not in META}
            values = {k: v for k, v in values.items() if f"{k}_FILE" not in given} | given
        self._write_env(values)
        self.settings = load({"ZLH_ENV_FILE": str(self.env_file)})
        asyncio.run(upgrade(self.settings.database.url.get_secret_value()))
        CertificateAuthority(self.settings.agent.ca_dir).ensure()
        if lab_nodes:
            asyncio.run(self._seed_nodes(lab_nodes))
        if not self.settings.api.admin_token.get_secret_value():
            values["ZLH_API__ADMIN_TOKEN"] = asyncio.run(self._admin_token())
            self._write_env(values)
            self.settings = load({"ZLH_ENV_FILE": str(self.env_file)})

    def previous(self) -> str | None:
        """The fleet of the last run in this directory; None: there was none, or it was killed before it did anything."""
        if (self.dir / MARK).is_file():
            return (self.dir / MARK).read_text().strip()
        if (self.dir / "lab" / "config.json").exists():
            return "sim"
        return "none" if self.env_file.exists() else None

    def _forget_lost_fleet(self) -> None:
        """The lab's containers end with it: once it has ended, a database that remembers them would only raise alarms."""
        if launch.status(self.dir / "lab")["running"] or not (self.dir / "zlh.db").exists():
            return
        self.say("the lab's fleet of the last run is gone: starting with an empty database")
        for leftover in (*self.dir.glob("zlh.db*"), *self.dir.glob("prefect/prefect.db*")):
            leftover.unlink()
        if self.env_file.exists():
            kept = [line for line in self.env_file.read_text().splitlines() if not line.startswith("ZLH_API__ADMIN_TOKEN")]
            self.env_file.write_text("\n".join(kept) + "\n")

    def _own_values(self) -> dict[str, str]:
        """Secrets and addresses, generated once and kept."""
        kept = dict(line.split("=", 1) for line in self.env_file.read_text().splitlines() if "=" in line) if self.env_file.exists() else {}

        def keep(key: str, make: Callable[[], str]) -> str:
            return kept.get(key) or make()

        ports = {
            "ZLH_API__PUBLIC_BIND": keep("ZLH_API__PUBLIC_BIND", lambda: f"127.0.0.1:{free_port()}"),
            "ZLH_API__CONTROL_BIND": keep("ZLH_API__CONTROL_BIND", lambda: f"127.0.0.1:{free_port()}"),
            "ZLH_ENGINE__URL": keep("ZLH_ENGINE__URL", lambda: f"http://127.0.0.1:{free_port()}/api"),
        }
        return {
            **(ports if self.with_lab else {}),  # else those of the settings: other machines must know them
            "ZLH_DATABASE__URL": keep("ZLH_DATABASE__URL", lambda: f"sqlite+aiosqlite:///{self.dir}/zlh.db"),
            "ZLH_API__CONTROL_TOKEN": keep("ZLH_API__CONTROL_TOKEN", lambda: secrets.token_urlsafe(32)),
            **({"ZLH_API__ADMIN_TOKEN": kept["ZLH_API__ADMIN_TOKEN"]} if "ZLH_API__ADMIN_TOKEN" in kept else {}),
            "ZLH_ENGINE__AUTH": keep("ZLH_ENGINE__AUTH", lambda: f"zlh:{secrets.token_urlsafe(24)}"),
            "ZLH_AGENT__MASTER_SECRET": keep("ZLH_AGENT__MASTER_SECRET", lambda: secrets.token_urlsafe(32)),
            "ZLH_AGENT__CA_DIR": str(self.dir / "ca"),
            "ZLH_ANSIBLE__FORWARDING_SECRET": keep(
                "ZLH_ANSIBLE__FORWARDING_SECRET", lambda: base64.urlsafe_b64encode(secrets.token_bytes(24)).decode()
            ),
            "ZLH_ANSIBLE__PROJECT_DIR": str(PROJECT),
            "ZLH_ENGINE__HOME": str(self.dir / "prefect"),
            "ZLH_ARTIFACTS__CACHE_FILE": str(self.dir / "catalog.json"),
            "ZLH_WATCHDOG__STATE_FILE": str(self.dir / "watchdog.json"),
        }

    def _write_env(self, values: Mapping[str, str]) -> None:
        scratch = self.env_file.with_suffix(".new")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("# Written by zlh up. Secrets: keep it 0600. Use it with ZLH_ENV_FILE.\n")
            file.writelines(f"{key}={value}\n" for key, value in sorted(values.items()))
        scratch.replace(self.env_file)

    async def _admin_token(self) -> str:
        """The command line's own token for the API."""
        database = Database(self.settings.database.url.get_secret_value())
        try:
            async with database.write() as tx:
                return (await tokens.create(tx, customer_id=None, role="admin", label="zlh up"))[1]
        finally:
            await database.close()

    async def _seed_nodes(self, lab: Iterable[Node]) -> None:
        """The lab's nodes, with their templates."""
        database = Database(self.settings.database.url.get_secret_value())
        try:
            async with database.write() as tx:
                for node in lab:
                    await nodes.put(tx, node)
        finally:
            await database.close()

    # -- processes -------------------------------------------------------------------------------------------------------------------

    def _child(self, name: str, argv: list[str], env: Mapping[str, str] | None = None, grace_s: float = 10.0) -> Child:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("ZLH_")} | {"ZLH_ENV_FILE": str(self.env_file)}
        child = Child(name, argv, environ if env is None else env, self.dir / "logs" / f"{name}.log", PROJECT, grace_s)
        self.children[name] = child
        return child

    def _zlh(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *arguments]

    def start(self) -> None:
        """Starts everything in order; raises with the end of the log of whatever did not come up."""
        home, engine = self.dir / "prefect", self.settings.engine
        home.mkdir(exist_ok=True)
        self._child("prefect-server", engine_processes.server_argv(), engine_processes.server_env(home, engine)).start()
        self._child("zlh-api", self._zlh("api")).start()
        self._child("zlh-dispatch", self._zlh("dispatch")).start()
        self._save()
        asyncio.run(self._set_up_engine(home))
        self.start_worker()
        self._child("zlh-watchdog", self._zlh("watchdog", "--every", f"{self.settings.timing.sweep_s:g}")).start()
        self._save()
        self.require_alive()

    def start_worker(self) -> Child:
        """The worker of all queues, also after it was stopped."""
        home, engine = self.dir / "prefect", self.settings.engine
        env = engine_processes.worker_env(home, engine, {k: v for k, v in os.environ.items() if not k.startswith("ZLH_")})
        env = {**env, "ZLH_ENV_FILE": str(self.env_file)}
        child = self._child(
            "prefect-worker", engine_processes.worker_argv(engine, name=worker_name(socket.gethostname(), os.getpid(), time.time())), env
        )
        child.start()
        self._save()
        return child

    def _save(self) -> None:
        self.register.write(list(self.children.values()))

    async def _set_up_engine(self, home: Path) -> None:
        setup = EngineSetup(self.settings.engine, home)
        try:
            healing = Healing(pending_s=SHORT_PENDING_S) if self.short else None
            await setup.run(PROJECT / "prefect.yaml", interval_s=self.settings.timing.sweep_s, healing=healing)
        finally:
            await setup.close()
        await resume(self.settings.engine)

    def require_alive(self) -> None:
        """Raises ChildDied for the first child that ended."""
        for child in self.children.values():
            if not child.alive:
                raise ChildDied(f"{child.name} ended", why=child.tail(), remedy=f"see {child.log}")

    def stop(self, *, drain_s: float) -> None:
        """Drains the worker for at most ``drain_s`` seconds, then ends everything; twice is harmless. Ctrl-C ends the draining."""
        worker = self.children.get("prefect-worker")
        if worker is not None and worker.alive and drain_s > 0:
            self.say(f"draining: operations under way may finish, for up to {drain_s:g} s; Ctrl-C ends this at once")
            try:
                left = asyncio.run(drain(self.settings.engine, drain_s))
                if left:
                    self.say(f"{left} still under way: taken up again at the next start")
            except (AutomationError, KeyboardInterrupt) as error:
                self.say(f"not drained: {error or 'asked not to'}; interrupted operations are taken up again at the next start")
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on it takes seconds
        for name in ("zlh-watchdog", "prefect-worker", "zlh-dispatch", "zlh-api", "prefect-server"):
            if name in self.children:
                self.children[name].stop()
        if self.with_lab:
            launch.down(self.dir / "lab")
        self.register.remove()

    def urls(self) -> list[str]:
        """Where everything is, for a person."""
        s = self.settings
        return [
            f"customers' API   http://{s.api.public_bind}",
            f"control API      http://{s.api.control_bind}",
            f"Prefect          {s.engine.url.removesuffix('/api')}  (login: ZLH_ENGINE__AUTH in {self.env_file})",
            f"settings         ZLH_ENV_FILE={self.env_file}",
            f"logs             {self.dir / 'logs'}",
        ]
