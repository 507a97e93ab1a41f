"""Scenarios: a short script of events, and the log that it must give. ``tests/simulation/README.md`` documents both files.

The log holds what a person would want to know: faults, findings and what became of them, repairs, effects at the receivers, alerts, operations.
It is written by the same hooks as the invariants, in virtual minutes and seconds, without ids and tokens.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from flows.act.sweep import SweepResult
from flows.errors import AutomationError, BadInput, Conflict, Fenced
from flows.simulate.loop import Process, here
from flows.simulate.plan import Fault
from flows.simulate.simulation import Order, Simulation
from flows.simulate.world import Effect

_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?$")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_TOKEN = re.compile(r"\b[0-9]{13}\b")
_SHORT = re.compile(r"\b[0-9a-f]{8}\b")
_KEYS = frozenset({"title", "shows", "servers", "until", "seed", "settings", "events"})
_EVENT = frozenset({"at", "do", "target", "for", "arg"})


@dataclass(frozen=True)
class Scenario:
    title: str
    order: Order
    faults: tuple[Fault, ...]
    settings: Mapping[str, Mapping[str, Any]]
    shows: tuple[str, ...] = ()


def load(directory: Path) -> Scenario:
    """Reads ``events.yml``. Raises BadInput, which names the file and the field."""
    path = directory / "events.yml"
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or set(data) - _KEYS or "events" not in data:
        raise BadInput(str(path), sorted(data) if isinstance(data, dict) else data, why=f"has not the keys {', '.join(sorted(_KEYS))}")
    seconds = _seconds(path, data.get("until", "15m"))
    order = Order(int(data.get("seed", 1)), int(data.get("servers", 6)), seconds / 3600, "none")
    faults = tuple(_event(path, event) for event in data["events"] or ())
    return Scenario(str(data.get("title", "")), order, faults, dict(data.get("settings", {})), tuple(map(str, data.get("shows", ()))))


def _event(path: Path, event: Mapping[str, Any]) -> Fault:
    if not isinstance(event, dict) or set(event) - _EVENT or "do" not in event or "at" not in event:
        raise BadInput(str(path), event, why=f"an event has the keys {', '.join(sorted(_EVENT))}")
    lasts = _seconds(path, event["for"]) if "for" in event else 0.0
    return Fault(_seconds(path, event["at"]), str(event["do"]), str(event.get("target", "")), lasts, str(event.get("arg", "")))


def _seconds(path: Path, text: object) -> float:
    match = _TIME.match(str(text)) if str(text) else None
    if match is None or not any(match.groups()):
        raise BadInput(str(path), text, why="is no time", remedy="write it like 1h30m, 5m or 2.5s")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


def play(scenario: Scenario, home: Path) -> str:
    """The log. An invariant that does not hold is its last line."""
    from flows.simulate.invariants.base import Violation

    simulation = Simulation(scenario.order, home, scenario.faults, scenario.settings)
    log = _Log(simulation)
    try:
        simulation.run()
    except Violation as violation:
        log.line(f"VIOLATION {violation.name}: {violation.what}")
    return "\n".join([f"# {scenario.title}", *log.lines]) + "\n"


def play_all(directories: Sequence[Path], home: Path) -> None:
    """Leaves the log of each in ``home``, as ``<name>.log``. Each is played in a process of its own, forked from this one, which has read the
    code already: it ends without its dead ones' ``finally``. Raises RuntimeError where one broke."""
    waiting, running, broken = list(reversed(directories)), dict[int, Path](), list[str]()
    sys.stdout.flush()
    sys.stderr.flush()
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 2):
            directory = waiting.pop()
            pid = os.fork()
            if not pid:
                _play_and_end(directory, home)
            running[pid] = directory
        pid, status = os.wait()
        directory = running.pop(pid)
        if status:
            broken.append(directory.name)
    if broken:
        raise RuntimeError(f"no log of {', '.join(broken)}")


def _play_and_end(directory: Path, home: Path) -> NoReturn:
    """Whatever happens, this process must not go on as a second parent."""
    status = 1
    try:
        (home / f"{directory.name}.log").write_text(play(load(directory), home), encoding="utf-8")
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)


class _Log:
    """Hears what a simulation hears, and keeps what changed."""

    def __init__(self, simulation: Simulation) -> None:
        self.s = simulation
        self.lines: list[str] = []
        self._findings: dict[str, str] = {}
        self._operations: dict[str, str] = {}
        self._struck = ""
        heard, told, swept, broke = simulation.world.heard, simulation.store.told, simulation.controllers.swept, simulation.faults.told
        kill = simulation.controllers.kill

        def effect(effect: Effect) -> None:
            self.effect(effect)
            heard(effect)

        def commit(process: Process | None, tables: frozenset[str]) -> None:
            told(process, tables)
            self.commit(tables)

        def end(process: Process, result: SweepResult | None) -> None:
            self.swept(process, result)
            swept(process, result)

        def fault(fault: Fault, what: str) -> None:
            self._struck = what.removeprefix("kills ")
            self.line(f"! {fault.kind} {fault.target} {what}".replace("  ", " "))
            broke(fault, what)

        def death(process: Process) -> None:
            if here() is process and process.name != self._struck:
                self.line(f"{process.kind}: ends itself, its lease is lost")
            kill(process)

        def refusal(process: Process | None, what: str, error: AutomationError) -> None:
            if process is not None and isinstance(error, Fenced | Conflict):
                self.line(f"{process.kind}: {what} refused: {error.why}")

        def said(line: str) -> None:
            if ": refused: " in line:
                self.line(f"person: {_SHORT.sub('ID', line)}")

        simulation.world.heard, simulation.store.told, simulation.controllers.swept, simulation.faults.told = effect, commit, end, fault
        simulation.controllers.kill = death  # type: ignore[method-assign]  # heard, and then done
        simulation.wire.refused, simulation.people.said = refusal, said

    def line(self, text: str) -> None:
        names = {server_id: name for name, server_id in self.s._names.items()}
        at = int(self.s.loop.time())
        clean = _TOKEN.sub("TOKEN", _ID.sub(lambda match: names.get(match[0], "ID"), text))
        self.lines.append(f"{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02} {clean}")

    def effect(self, effect: Effect) -> None:
        if effect.source in ("discord", "mail"):
            self._message(effect)
        elif effect.changed or effect.process is not None:
            who = effect.process.kind if effect.process is not None else "world"
            self.line(f"{who}: {effect.source} {effect.verb} {effect.target}{'' if effect.changed else ' (no change)'}")

    def _message(self, effect: Effect) -> None:
        """All but what each repair says to those who want to read along: those lines are here already."""
        key = re.sub(r"/[0-9]{13}(?=/|$)", "", effect.target)
        if effect.source == "mail":
            self.line(f"mail {key}")
            return
        post = self.s.world.posts[-1]
        if post.ping or not key.startswith(("action/", "repair/", "fold:action/", "fold:repair/")):
            self.line(f"alert {key} to {post.channel}{', with a ping' if post.ping else ''}")

    def commit(self, tables: frozenset[str]) -> None:
        for intent in self.s.ledger.fresh:
            self.line(f"repair {intent.action} of {intent.subject} begins")
        for intent in self.s.ledger.closed:
            self.line(f"repair {intent.action} of {intent.subject} {intent.outcome}")
        if "operations" in tables:
            for id_, kind, state, name in self.s.ledger.rows(
                "SELECT o.id, o.kind, o.state, s.name FROM operations o JOIN servers s ON s.id = o.server_id ORDER BY o.id"
            ):
                if self._operations.get(id_) != state:
                    self._operations[id_] = state
                    self.line(f"operation {kind} of {name} {state}")
        if "episodes" in tables:
            self._episodes()

    def _episodes(self) -> None:
        present = dict(self.s.ledger.rows("SELECT open_key, reason FROM episodes WHERE closed_at IS NULL ORDER BY open_key"))
        for key, reason in present.items():
            if self._findings.get(key) != reason:
                self.line(f"finding {key}: {reason}")
        for key in self._findings:
            if key not in present:
                self.line(f"finding {key}: over")
        self._findings = present

    def swept(self, process: Process, result: SweepResult | None) -> None:
        if result is None or result.outcome in ("failed", "superseded"):
            self.line(f"sweep {'raised' if result is None else result.outcome}")
