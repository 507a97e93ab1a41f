"""Starts and ends a lab as a program of its own, for ``zlh lab``, ``zlh up``, the demo and tests. Standard library alone.

A lab lives in a directory: ``config.json`` (0600, its secrets), ``state.json`` (written by the lab when it is ready), ``lab.pid``,
``lab.log``, ``lock``. The lab holds ``lock`` as long as it lives, whoever started it; a process id is believed only with its start time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.errors import AutomationError, BadInput, Busy, Conflict, DeadlineExceeded, Permanent, Unreachable
from flows.lab import deeds, needs, program, wiring
from flows.lab.substance import SubstanceError

READY_S = 30.0
#: The same for real containers: the first start builds an image of a whole Debian; the end stops every container.
LXC_READY_S, LXC_END_S = 1_200.0, 120.0
#: Exit status of a lab whose port is somebody else's.
PORT_TAKEN = 3
#: Binds of the configuration, and the endpoint whose port they keep from one run to the next.
_BINDS = {
    "proxmox": ("bind", "address"),
    "bridge": ("bind", "url"),
    "dns": ("bind", "server"),
    "discord": ("bind", "url"),
    "artifacts": ("bind", "url"),
}


@dataclass(frozen=True)
class State:
    """A lab that was ready. ``secrets`` never appear in its representation."""

    directory: Path
    pid: int
    control_url: str
    control_token: str = field(repr=False)
    endpoints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nodes: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fleet(self) -> str:
        """``sim`` or ``lxc``."""
        return str(self.config.get("fleet", "sim"))


def load(directory: Path) -> State:
    """The state of the lab in ``directory``. Raises Unreachable where none runs."""
    directory = directory.resolve()
    found = program.pid_of(directory)
    try:
        config, state = program.read(directory / "config.json"), program.read(directory / "state.json")
    except OSError:
        found = None
    if found is None or state["pid"] != found:
        raise Unreachable(f"the lab in {directory}", why="does not run", remedy="start it: zlh lab up")
    return State(directory, found, state["control"], config["control"]["token"], state["endpoints"], tuple(state["nodes"]), config)


def up(
    directory: Path,
    *,
    project_dir: Path = Path("."),
    backends_url: str = "",
    backends_token: str = "",
    overrides: Mapping[str, Any] | None = None,
    fleet: str | None = None,
    deadline_s: float | None = None,
    say: Callable[[str], None] | None = None,
) -> State:
    """Starts the lab, or finds it running, and returns when it is ready. ``backends_url`` is where the proxy bridge asks for its backends.

    ``overrides`` are merged into the configuration of a lab that is started. Secrets and ports are kept from one run to the next.
    ``fleet`` is ``sim`` or ``lxc``; None: that of the directory's last lab, or ``sim``. ``say`` hears of the progress, a line at a time.
    Whatever a killed predecessor of fleet ``lxc`` left on the machine is removed first.
    Raises Busy (somebody else starts or ends it now), Conflict (a lab of the other fleet runs here), Permanent (this machine lacks something),
    DeadlineExceeded or AutomationError with the end of its log.
    """
    directory = directory.resolve()
    if fleet not in (None, "sim", "lxc"):
        raise BadInput("fleet", fleet, why="there is no such fleet", remedy="choose sim or lxc")
    fleet = fleet or _fleet(directory) or "sim"
    if fleet == "lxc":
        needs.require()
    deadline_s = deadline_s or (LXC_READY_S if fleet == "lxc" else READY_S)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BadInput("directory", str(directory), why="others own it or may write there", remedy="name a directory of your own (--dir)")
    with program.starting(directory) as lock:
        if lock is None:
            state = _wait_ready(directory, None, deadline_s, say)
            if state.fleet != fleet:
                raise Conflict(
                    f"the lab in {directory}", why=f"runs fleet {state.fleet}, not {fleet}", remedy="end it: zlh lab down; or name another --dir"
                )
            _point_bridge(state, backends_url, backends_token)
            return state
        _clean(directory, say)
        config = _configuration(directory, fleet, project_dir, backends_url, backends_token, overrides or {})
        for attempt in (1, 2):
            program.write(directory / "config.json", config)
            (directory / "state.json").unlink(missing_ok=True)
            process = program.spawn(directory, lock)
            try:
                state = _wait_ready(directory, process, deadline_s, say)
                break
            except BaseException as error:
                program.end(process.pid, _end_s(directory))
                _clean(directory, say)
                if not isinstance(error, AutomationError):
                    raise
                if attempt == 2 or process.returncode != PORT_TAKEN:
                    raise
                _any_port(config)  # somebody took a port that was ours in the last run
        _keep_ports(config, state)
        program.write(directory / "config.json", config)
        return load(directory)


def down(directory: Path) -> bool:
    """Ends the lab: TERM, then KILL; also one whose launcher was killed. True if one ran; harmless otherwise. Of fleet ``lxc`` nothing
    stays on the machine, not even of a lab that was killed."""
    directory = directory.resolve()
    if not directory.is_dir():
        return os.geteuid() == 0 and _removed(directory) != []  # it may have been deleted under a lab, or after one that was killed
    if _fleet(directory) == "lxc" and os.geteuid() != 0:
        raise Permanent(f"ending the lab in {directory}", why="its containers belong to root", remedy="do it as root")
    deadline = time.monotonic() + _end_s(directory)
    pid = program.pid_of(directory)
    while pid is None and program.held(directory):  # started a moment ago: it has not said yet who it is
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"ending the lab in {directory}", why="something holds its lock and does not say its process id")
        time.sleep(0.05)
        pid = program.pid_of(directory)
    if pid is not None:
        program.end(pid, _end_s(directory))
    program.reap()
    while True:
        with program.starting(directory) as lock:
            if lock is not None:
                cleaned = _clean(directory)
                for name in ("state.json", "lab.pid"):
                    (directory / name).unlink(missing_ok=True)
                return pid is not None or cleaned
        if program.pid_of(directory) is not None or time.monotonic() > deadline:
            return pid is not None  # somebody starts one now: what is here is theirs
        time.sleep(0.05)  # its launcher still cleans up after it


def status(directory: Path) -> dict[str, Any]:
    """``running``, and of a running lab its process, endpoints, container counts and armed faults."""
    try:
        state = load(directory)
    except Unreachable:
        return {"running": False, "directory": str(directory)}
    live = call(state, "GET", "/state")
    containers = [c for c in live["containers"].values() if not c["template"]]
    return {
        "running": True,
        "fleet": state.fleet,
        "directory": str(state.directory),
        "pid": state.pid,
        "control": state.control_url,
        "endpoints": {name: dict(values) for name, values in state.endpoints.items()},
        "containers": {"all": len(containers), "running": sum(c["status"] == "running" for c in containers)},
        "nodes": {name: node["online"] for name, node in live["parts"].get("proxmox", {}).get("nodes", {}).items()},
        "faults": live["faults"],
    }


def fault(directory: Path, target: str, mode: str, **options: Any) -> dict[str, Any]:
    """Arms a fault (``call``, ``count``, ``for_s``, ``status``, ``seconds``, ``message``). Raises BadInput naming a wrong field."""
    armed: dict[str, Any] = call(load(directory), "POST", "/faults", {"target": target, "mode": mode, **options})
    return armed


def meddle(directory: Path, target: str, verb: str, value: str | None = None) -> dict[str, Any] | None:
    """Does something to the fleet itself (see :mod:`flows.lab.deeds`) and returns what is so now. None: no verb, perhaps a fault's mode.
    Raises BadInput, and as :func:`call`."""
    request = deeds.deed(target, verb, value)
    if request is None:
        return None
    done: dict[str, Any] = call(load(directory), request.method, request.path, request.body)
    return done


def clear(directory: Path, fault_id: int | None = None, *, target: str | None = None) -> int:
    """Disarms one fault, those of a target, or all; returns how many."""
    query = f"?id={fault_id}" if fault_id is not None else f"?{urllib.parse.urlencode({'target': target})}" if target is not None else ""
    return int(call(load(directory), "DELETE", f"/faults{query}")["cleared"])


def call(state: State, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> Any:
    """A request to the control API. Raises BadInput (refused, with the field), Unreachable or AutomationError."""
    request = urllib.request.Request(  # noqa: S310 - the URL comes from the lab's own state file
        state.control_url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {state.control_token}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            raw = response.read()
    except urllib.error.HTTPError as error:
        with error:
            answer = json.loads(error.read() or b"{}")
        if error.code == 422:
            name = answer.get("field", path)
            raise BadInput(name, (body or {}).get(name), why=answer.get("detail", ""), remedy="correct it and try again") from error
        raise AutomationError(f"lab: {method} {path}", why=answer.get("detail", f"HTTP {error.code}")) from error
    except OSError as error:
        raise Unreachable(f"lab: {method} {path}", why=str(error), remedy="look at it: zlh lab status") from error
    return json.loads(raw) if raw else None


def env(state: State) -> dict[str, str]:
    """The ``ZLH_*`` variables with which the product talks to this lab. They hold secrets."""
    return wiring.env(state.config, state.endpoints, (state.control_url, state.control_token))


# ── the configuration ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fleet(directory: Path) -> str | None:
    """Of the directory's last lab."""
    try:
        return str(program.read(directory / "config.json").get("fleet", "sim"))
    except (OSError, ValueError):
        return None


def _end_s(directory: Path) -> float:
    return LXC_END_S if _fleet(directory) == "lxc" else program.END_S


def _configuration(directory: Path, fleet: str, project_dir: Path, url: str, token: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    config = wiring.generated(directory, fleet)
    with contextlib.suppress(OSError, ValueError):  # none yet, or half written by a predecessor: generated anew
        kept = program.read(directory / "config.json")
        if kept.get("fleet", "sim") == fleet:
            wiring.merge(config, kept)
    wiring.merge(config, {"state_file": str(directory / "state.json"), "runner": {"project_dir": str(project_dir.resolve())}})
    wiring.merge(config, {"proxmox": {"ca_dir": str(directory / "proxmox-ca")}, "bridge": {"backends_url": url, "backends_token": token}})
    if fleet == "lxc" and "network" not in overrides.get("lxc", {}):
        wiring.choose_network(config, directory)
    return wiring.follow_network(wiring.merge(config, overrides))


def _port(endpoint: str) -> str:
    return endpoint.rstrip("/").rpartition(":")[2]


def _keep_ports(config: dict[str, Any], state: State) -> None:
    """The next run listens where this one did, so that settings which name the ports stay true."""
    for part, (bind, endpoint) in _BINDS.items():
        if part in state.endpoints:
            host = str(config[part][bind]).rpartition(":")[0]
            config[part][bind] = f"{host}:{_port(state.endpoints[part][endpoint])}"
    config["control"]["bind"] = f"127.0.0.1:{_port(state.control_url)}"
    if "bridge" in state.endpoints:
        config["bridge"]["players_bind"] = state.endpoints["bridge"]["players"]
    for part in ("agents", "node"):
        if part in state.endpoints:
            config[part]["port"] = int(state.endpoints[part]["port"])


def _any_port(config: dict[str, Any]) -> None:
    for part, (bind, _) in _BINDS.items():
        config[part][bind] = f"{str(config[part][bind]).rpartition(':')[0]}:0"
    config["control"]["bind"] = config["bridge"]["players_bind"] = "127.0.0.1:0"
    if config.get("fleet", "sim") == "sim":
        config["agents"]["port"] = 0
    config.setdefault("node", {})["port"] = 0


def _point_bridge(state: State, url: str, token: str) -> None:
    """A lab that ran already may have been started for another control listener, or for none."""
    bridge = state.config.get("bridge", {})
    if url and "bridge" in state.endpoints and (bridge.get("backends_url"), bridge.get("backends_token")) != (url, token):
        call(state, "POST", "/bridge/configure", {"backends_url": url, "token": token})
        program.write(state.directory / "config.json", wiring.merge(dict(state.config), {"bridge": {"backends_url": url, "backends_token": token}}))


# ── what it leaves ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _clean(directory: Path, say: Callable[[str], None] | None = None) -> bool:
    """Removes what a lab of real containers in this directory left on the machine; the caller holds the lock. True if there was anything."""
    if _fleet(directory) != "lxc" and not (directory / "zlh-containers").exists():
        return False
    removed = _removed(directory)
    if removed and say is not None:
        say(f"removed what an earlier lab left: {', '.join(removed)}")
    return bool(removed)


def _removed(directory: Path) -> list[str]:
    from flows.lab import lxc
    from flows.lab.dns import knot

    try:
        removed = [*knot.clean(directory / "zlh-knot"), *lxc.clean(directory)]
        if (directory / "zlh-knot").exists():  # its zone names containers that are gone
            shutil.rmtree(directory / "zlh-knot")
            removed.append(f"files {directory / 'knot'}")
        return removed
    except (SubstanceError, OSError) as error:
        raise AutomationError(f"removing what the lab in {directory} left", why=str(error), remedy="see to that, then: zlh lab down") from error


def _wait_ready(directory: Path, process: subprocess.Popen[bytes] | None, deadline_s: float, say: Callable[[str], None] | None = None) -> State:
    """Polls until the state file names the living lab. ``process`` None: somebody else started it."""
    what, deadline = f"starting the lab in {directory}", time.monotonic() + deadline_s
    progress = program.Progress(directory, say)
    while True:
        progress.tell()
        with contextlib.suppress(Unreachable, ValueError, KeyError):
            return load(directory)
        if process is not None and process.poll() is not None:
            raise AutomationError(what, why=f"it ended with {process.returncode}:\n{program.tail(directory)}", remedy=f"see {directory}/lab.log")
        if process is None and not program.held(directory):
            raise Busy(what, why="the lab that held the directory is ending", remedy="try again", retry_after=1.0)
        if time.monotonic() > deadline:
            raise DeadlineExceeded(what, why=f"not ready after {deadline_s:g} s:\n{program.tail(directory)}", remedy=f"see {directory}/lab.log")
        time.sleep(0.05)
