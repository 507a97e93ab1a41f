"""What goes wrong, when: a seeded list of faults. Each is drawn by its own key, so that a list without one of them is otherwise the same.

A fault names its kind, target, duration (seconds) and argument; :mod:`flows.simulate.faults` says what each does. ``arg`` of a death or a
pause is where it strikes: a number of steps after it was armed, or the beginning of a boundary's name (``tx:commit``, ``wire:proxy:``,
``answer:agents:``, ``repair:publish_dns:effect``, ``create_container:do:task``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flows.errors import BadInput
from flows.simulate.fleet import DEV_EVERY, node_names
from flows.simulate.keyed import draw, pick

#: Virtual seconds without faults at a simulation's end, in which everything repairable must be mended.
QUIET_S = 95 * 60.0
#: Before the first fault: two sweeps have seen the fleet.
WARM_S = 150.0

SOURCES = ("proxmox", "agents", "proxy", "dns", "engine", "discord", "mail", "redis")
BOUNDARIES = (
    "tx:begin", "tx:commit", "tx:done", "wire:proxy:", "wire:dns:", "wire:agents:", "wire:proxmox:", "answer:proxy:", "answer:dns:",
    "answer:agents:", "answer:proxmox:", "act:", "repair:", "claimed", "create_container", "start_workload", "register_proxy", "destroy_container",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """``at`` in virtual seconds. ``duration`` 0: a moment."""

    at: float
    kind: str
    target: str = ""
    duration: float = 0.0
    arg: str = ""

    def __str__(self) -> str:
        return " ".join(p for p in (f"{self.at:.1f}", self.kind, self.target, f"for {self.duration:g}" if self.duration else "", self.arg) if p)


#: kind → weight, of a profile. ``realistic`` is a month of a small hoster; ``dense`` what no operator ever sees in a day.
WEIGHTS: Mapping[str, float] = {
    "death": 14, "pause": 10, "host": 2, "cut": 5, "down": 3, "slow": 3, "lose": 12, "refuse": 8, "partial": 3, "lie": 2, "database": 4,
    "commit_lost": 5, "clock": 2, "flush": 2, "node": 2, "bridge": 2, "twin": 5, "stop_container": 3, "delete_record": 8, "change_record": 3,
    "delete_registration": 8, "stale_record": 4, "stale_registration": 4, "crash": 8, "agent": 4, "impostor": 2, "order": 22, "create": 8,
    "suspend": 3, "brake": 8, "level": 4, "hold": 6, "missing": 1, "orphan": 1, "sluggish": 2, "freeze": 3, "late": 2, "fail_task": 4,
    "hide": 2, "duplicate": 1, "holdtag": 2, "abandon": 2, "approve": 4,
}  # fmt: skip
_REALISTIC: Mapping[str, float] = {
    "death": 3, "host": 1, "cut": 2, "down": 3, "slow": 4, "lose": 3, "refuse": 1, "partial": 1, "database": 2, "commit_lost": 1, "flush": 1,
    "node": 0.25, "bridge": 1, "twin": 1, "stop_container": 1, "delete_record": 1, "change_record": 0.5, "delete_registration": 1,
    "stale_record": 0.5, "stale_registration": 0.5, "crash": 12, "agent": 2, "order": 60, "create": 20, "suspend": 2, "brake": 1, "hold": 1,
    "sluggish": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """``per_hour``: faults, for a dozen servers and so many more for more servers (square root)."""

    per_hour: float
    weights: Mapping[str, float]
    compounds: float = 0.0  # how likely each compound is, once in a simulation


PROFILES: Mapping[str, Profile] = {
    "default": Profile(8.0, WEIGHTS, 0.3),
    "dense": Profile(30.0, WEIGHTS, 1.0),
    "realistic": Profile(0.6, _REALISTIC),
    "none": Profile(0.0, WEIGHTS),
}


#: What must meet to put a safeguard to the test, and would by chance too seldom: seconds after the first, kind, target, duration, argument.
#: ``S`` is a game server of the seed's choice.
COMPOUNDS: Sequence[Sequence[tuple[float, str, str, float, str]]] = (
    ((0, "brake", "S", 400, ""), (20, "delete_record", "S", 0, ""), (21, "delete_registration", "S", 0, "")),
    ((0, "level", "", 400, "0"), (60, "delete_record", "S", 0, "")),
    ((0, "order", "S", 0, "restart"), (1, "hold", "S", 300, ""), (2, "delete_record", "S", 0, ""), (130, "order", "S", 0, "restart")),
    ((0, "lose", "agents", 0, "after:1"), (0, "order", "S", 0, "restart")),
    ((0, "order", "S", 0, "restart"), (1, "death", "run", 0, "wire:agents:restart")),
    ((0, "order", "S", 0, "restart"), (1, "pause", "run", 200, "wire:agents:restart")),
    ((0, "delete_record", "S", 0, ""), (1, "pause", "sweep", 70, "wire:dns:")),
    ((0, "delete_registration", "S", 0, ""), (1, "death", "sweep", 0, "answer:proxy:")),
    ((0, "down", "dns", 200, ""), (30, "delete_record", "S", 0, "")),
    ((0, "down", "proxy", 200, ""), (30, "delete_registration", "S", 0, "")),
    ((0, "crash", "S", 0, "error"), (900, "order", "S", 0, "restart")),
    ((0, "refuse", "dns", 600, "S"),),
    ((0, "agent", "S", 500, ""),),
    ((0, "create", "made1", 0, "paper"), (200, "order", "made1", 0, "delete")),
    ((0, "level", "", 900, "2"), (60, "agent", "S", 800, "")),
    ((0, "level", "", 900, "2"), (60, "crash", "S", 0, "error"), (200, "approve", "S", 0, "")),
    ((0, "level", "", 1500, "3"), (60, "orphan", "S", 1400, ""), (300, "approve", "", 0, ""), (310, "lose", "proxmox", 0, "after:1")),
    ((0, "level", "", 1500, "3"), (60, "orphan", "S", 1400, ""), (290, "fail_task", "", 300, "vzdestroy"), (300, "approve", "", 0, "")),
    ((0, "order", "S", 0, "restart"), (1, "freeze", "c1", 150, ""), (160, "freeze", "c2", 150, "")),
    ((0, "late", "", 290, ""), (60, "delete_record", "S", 0, ""), (61, "delete_registration", "S", 0, "")),
    ((0, "level", "", 900, "3"), (30, "hide", "S", 600, ""), (60, "agent", "S", 300, "")),
    ((0, "delete_record", "S", 0, ""), (1, "pause", "sweep", 70, "act:")),
    ((0, "delete_registration", "S", 0, ""), (1, "pause", "sweep", 33, "act:"), (60, "brake", "S", 400, "")),
    *[
        (
            (0, "create", f"made{n}", 0, "paper"),
            (7, "pause", "run", 200, "wire:ssh:deploy_agent.yml"),
            (20, "cut", "c1:engine", 600, ""),
            (20, "cut", "c2:engine", 600, ""),
        )
        for n in (2, 3)
    ],
    ((0, "order", "S", 0, "delete"), (0, "down", "proxmox", 900, "")),
    ((0, "order", "S", 0, "restart"), (1, "death", "run", 0, "wire:agents:restart"), (2, "agent", "S", 240, "")),
    *[((0, "crash", "S", 0, "error"), *((60.0 + 120 * n, "agent", "S", 55.0, "") for n in range(6)))] * 3,  # any fault nearby spoils it
    ((0, "brake", "S", 400, ""), *((20.0, "delete_registration", f"game{n:03d}", 0.0, "") for n in range(1, 8))),
)
#: The last one needs nearly every server: it comes first, while they are all there.
EARLY_S = 60.0


def _compounds(seed: int, servers: int, end: float, chance: float) -> list[Fault]:
    faults = []
    for n, compound in enumerate(COMPOUNDS):
        if draw(seed, "compound", n) >= chance:
            continue
        games = [name for name in map(_server, range(servers)) if name.startswith("game")]
        server = pick(games, seed, "of compound", n)
        room = EARLY_S if compound is COMPOUNDS[-1] else max(0.0, end - WARM_S - compound[-1][0])
        at = WARM_S + room * draw(seed, "compound at", n)
        for after, kind, target, duration, arg in compound:
            faults.append(Fault(round(at + after, 1), kind, server if target == "S" else target, duration, server if arg == "S" else arg))
    return faults


def planned(seed: int, servers: int, hours: float, profile: str) -> list[Fault]:
    """The faults of a seed, in order of time."""
    if profile not in PROFILES:
        raise BadInput("profile", profile, why="is none that is known", remedy=f"choose among {', '.join(PROFILES)}")
    chosen = PROFILES[profile]
    end = hours * 3600 - QUIET_S
    if end <= WARM_S or not chosen.per_hour:
        return []
    number = int(chosen.per_hour * (end - WARM_S) / 3600 * max(1.0, (servers / 12) ** 0.5))
    kinds, total = list(chosen.weights), sum(chosen.weights.values())
    faults = []
    for n in range(number):
        where, kind = draw(seed, "kind", n) * total, kinds[-1]
        for name in kinds:
            where -= chosen.weights[name]
            if where < 0:
                kind = name
                break
        at = WARM_S + (end - WARM_S) * draw(seed, "at", n)
        fault = _fault(seed, n, round(at, 1), kind, servers)
        faults.append(fault)
        if kind in ("brake", "hold") and profile != "realistic":
            faults += _meanwhile(seed, n, fault, servers)
    faults += _compounds(seed, servers, end, chosen.compounds)
    # What lasted beyond the end would leave less than the quiet time, and nothing to be judged by it.
    faults = [replace(f, duration=round(min(f.duration, max(1.0, end - f.at)), 1)) for f in faults]
    return sorted(faults, key=lambda f: (f.at, f.kind, f.target))


def _meanwhile(seed: int, n: int, fault: Fault, servers: int) -> list[Fault]:
    """Whoever stops automation works on something, and takes it off the edge."""
    server = fault.target if fault.target[:4] == "game" else _server(int(draw(seed, n, "meanwhile") * servers))
    at = round(fault.at + 20 + 40 * draw(seed, n, "later"), 1)
    return [Fault(at, "delete_record", server), Fault(at + 1, "delete_registration", server)]


def _fault(seed: int, n: int, at: float, kind: str, servers: int) -> Fault:
    def d(*key: object) -> float:
        return draw(seed, n, *key)

    def between(low: float, high: float, *key: object) -> float:
        return round(low + (high - low) * d("between", *key) ** 2, 1)

    # Trouble likes company: most of it meets the same few.
    few = max(3, servers // 4)
    server = _server(int(d("server") * (few if d("hot") < 0.6 else servers)))
    host = pick(("c1", "c2"), seed, n, "host")
    where = str(1 + int(200 * d("steps") ** 2)) if d("mix") < 0.5 else pick(BOUNDARIES, seed, n, "boundary")
    if not where.isdigit() and d("again") < 0.3:
        where += f"#{2 + int(2 * d('time'))}"
    if kind == "death":
        return Fault(at, kind, pick(("sweep", "sweep", "run", "run", "dispatch", "holder"), seed, n, "who"), 0.0, where)
    if kind == "pause":
        return Fault(at, kind, pick(("sweep", "sweep", "run", "run", "dispatch", "holder"), seed, n, "who"), between(3, 200), where)
    if kind == "host":
        return Fault(at, kind, host, between(10, 900))
    if kind == "cut":
        return Fault(at, kind, f"{host}:{pick((*SOURCES, 'database', 'ssh'), seed, n, 'source')}", between(5, 600))
    if kind == "down":
        return Fault(at, kind, pick(SOURCES, seed, n, "source"), between(5, 600))
    if kind == "slow":
        return Fault(at, kind, pick((*SOURCES, "ssh"), seed, n, "source"), between(30, 600), str(pick(("5", "30", "300"), seed, n, "factor")))
    if kind == "lose":
        source = pick(("proxmox", "agents", "proxy", "dns", "engine", "discord", "mail"), seed, n, "source")
        return Fault(at, kind, source, 0.0, f"{pick(('before', 'after', 'after'), seed, n, 'when')}:{1 + int(3 * d('k'))}")
    if kind == "refuse":
        return Fault(at, kind, pick(("proxy", "dns", "proxy", "dns", "discord", "ssh"), seed, n, "source"), 300 + between(0, 2400), server)
    if kind == "partial":
        return Fault(at, kind, pick(("agents", "proxmox", "proxy", "dns"), seed, n, "source"), between(30, 600))
    if kind == "lie":
        return Fault(at, kind, "proxmox", between(60, 900))
    if kind == "database":
        return Fault(at, kind, "", between(1, 60))
    if kind == "commit_lost":
        return Fault(at, kind, "", 0.0, str(1 + int(6 * d("k"))))
    if kind == "clock":
        return Fault(at, kind, "", 0.0, str(int(40_000 * (d("jump") - 0.4))))
    if kind == "node":
        return Fault(at, kind, pick(node_names(servers), seed, n, "node"), between(60, 1800))
    if kind == "bridge":
        return Fault(at, kind, "", between(1, 120))
    if kind in ("agent", "impostor", "hold", "hide", "duplicate", "holdtag"):
        return Fault(at, kind, server, between(60, 1800))
    if kind == "crash":
        return Fault(at, kind, server, 0.0, pick(("recovers", "recovers", "error"), seed, n, "how"))
    if kind == "sluggish":
        return Fault(at, kind, server, between(300, 3000))
    if kind == "order":
        return Fault(at, kind, server, 0.0, pick(("start", "stop", "restart", "restart", "start", "delete"), seed, n, "order"))
    if kind == "create":
        return Fault(at, kind, f"new{n:03d}", 0.0, pick(("paper", "paper", "fabric", "dev"), seed, n, "flavor"))
    if kind == "suspend":
        return Fault(at, kind, server, between(120, 3600))
    if kind == "brake":
        return Fault(at, kind, pick((server, server, "all", pick(node_names(servers), seed, n, "node")), seed, n, "scope"), between(120, 2400))
    if kind == "level":
        return Fault(at, kind, "", 240 + between(0, 1500), pick(("0", "0", "2", "3"), seed, n, "level"))
    if kind == "freeze":
        return Fault(at, kind, host, between(3, 300))
    if kind == "late":
        return Fault(at, kind, "", between(60, 600))
    if kind == "fail_task":
        return Fault(at, kind, "", between(60, 900), pick(("", "vzclone", "vzstart", "vzstop", "vzdestroy"), seed, n, "task"))
    if kind == "abandon":
        return Fault(at, kind, server, 300 + between(0, 2400))
    if kind == "approve":
        return Fault(at, kind)
    if kind in ("flush", "twin"):
        return Fault(at, kind)
    return Fault(at, kind, server)


def _server(n: int) -> str:
    return f"{'dev' if n % DEV_EVERY == DEV_EVERY - 1 else 'game'}{n + 1:03d}"


# Scripts


def save(path: Path, order: Mapping[str, object], faults: Iterable[Fault]) -> None:
    """A script that replays: what was simulated, and the faults, one a line."""
    lines = [json.dumps({"simulate": dict(order)}, sort_keys=True), *(json.dumps(asdict(fault)) for fault in faults)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, object], list[Fault]]:
    """What :func:`save` wrote. Raises BadInput."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        order = lines[0]["simulate"]
        return dict(order), [Fault(**line) for line in lines[1:]]
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        remedy = "give a file that `zlh simulate --script FILE` wrote"
        raise BadInput("replay", str(path), why=f"is no script: {error}", remedy=remedy) from error


def text(faults: Sequence[Fault]) -> str:
    return "\n".join(f"  {fault}" for fault in faults)
