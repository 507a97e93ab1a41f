"""What each kind of fault does to the world, to the controllers, or as a person. See :mod:`flows.simulate.plan` for their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flows.act.ownership import server_tag
from flows.clients.dns_names import OWNER_LABEL, owner_text
from flows.domain.sources import HOLD_TAG, OUR_TAG, Record, Registration
from flows.errors import BadInput
from flows.simulate.controllers import Controllers
from flows.simulate.loop import Process
from flows.simulate.people import People
from flows.simulate.plan import Fault
from flows.simulate.world import PERSON, Machine, World

#: Faults that last until something else ends them; how long they count as lasting, seconds.
_PERSON_S = 5.0


@dataclass
class Faults:
    """``active``: those under way, each with its end; ``ended``: when the last one did. ``told`` hears of each."""

    controllers: Controllers
    people: People
    told: Callable[[Fault, str], None] = lambda fault, what: None
    active: dict[Fault, float] = field(default_factory=dict)
    ended: float = 0.0
    injected: int = 0

    @property
    def world(self) -> World:
        return self.controllers.world

    def schedule(self, faults: list[Fault]) -> None:
        for fault in faults:
            if fault.kind not in KINDS:
                raise BadInput("kind", fault.kind, why="is no fault", remedy=f"choose among {', '.join(sorted(KINDS))}")
            self.controllers.loop.after(fault.at, self._begin, fault)
            self.ended = max(self.ended, fault.at + fault.duration)

    def _begin(self, fault: Fault) -> None:
        self.injected += 1
        self.told(fault, "begins")
        undo = KINDS[fault.kind](self, fault)
        self.active[fault] = self.controllers.loop.time() + fault.duration
        self.controllers.loop.after(fault.duration or _PERSON_S, self._end, fault, undo)

    def _end(self, fault: Fault, undo: Callable[[], object] | None) -> None:
        self.active.pop(fault, None)
        if undo is not None:
            undo()
            self.told(fault, "ends")

    def machine(self, name: str) -> Machine | None:
        """The container of a server, by name."""
        server_id = self.controllers.server_of(name)
        return next((m for m in self.world.machines.values() if server_id and m.owner() == server_id), None)

    def touched(self, source: str, verb: str, name: str) -> None:
        self.world.effect(source, verb, name, self.controllers.server_of(name), None)


Undo = Callable[[], object] | None


def _counter(attribute: str) -> Callable[[Faults, Fault], Undo]:
    """A trouble that several faults may have caused: it is over with the last."""

    def begin(faults: Faults, fault: Fault) -> Undo:
        trouble = faults.world.wire.trouble(fault.target)
        setattr(trouble, attribute, getattr(trouble, attribute) + 1)

        def end() -> None:
            setattr(trouble, attribute, getattr(trouble, attribute) - 1)
            if fault.target == "engine":
                faults.controllers.engine.look_soon()

        return end

    return begin


_refusing = _counter("refusing")


def _strike(faults: Faults, fault: Fault, strike: Callable[[Process], None]) -> Undo:
    c = faults.controllers
    where: str | int = int(fault.arg) if fault.arg.isdigit() else fault.arg
    if fault.target == "holder":
        held = c.store.reader.execute("SELECT holder FROM epochs").fetchone()
        candidates = [p for p in c.processes if held and p.holder == held[0]]
        target = "sweep"
    else:
        candidates, target = [p for p in c.processes if p.kind == fault.target], fault.target
    if candidates:
        candidates[-1].arm(strike, where)
    else:
        entry = (target, strike, where)
        c.armed.append(entry)

        def forget() -> None:
            if entry in c.armed:
                c.armed.remove(entry)

        c.loop.after(900, forget)
    return None


def _death(faults: Faults, fault: Fault) -> Undo:
    c = faults.controllers

    def strike(process: Process) -> None:
        faults.told(fault, f"kills {process}")
        c.kill(process)
        if process.kind == "dispatch":
            c.loop.after(5.0, c.dispatch, process.host) if process.host not in c.down else None

    return _strike(faults, fault, strike)


def _pause(faults: Faults, fault: Fault) -> Undo:
    def strike(process: Process) -> None:
        faults.told(fault, f"stops {process}")
        faults.controllers.stand(process, fault.duration)

    return _strike(faults, fault, strike)


def _host(faults: Faults, fault: Fault) -> Undo:
    faults.controllers.kill_host(fault.target, fault.duration)
    return None


def _freeze(faults: Faults, fault: Fault) -> Undo:
    faults.controllers.stand_host(fault.target, fault.duration)
    return lambda: None


def _late(faults: Faults, fault: Fault) -> Undo:
    """The engine's schedule is behind; then it gives all the ticks that it missed at once."""
    c = faults.controllers
    c.late += 1

    def end() -> None:
        c.late -= 1
        if not c.late:
            c.catch_up()

    return end


def _cut(faults: Faults, fault: Fault) -> Undo:
    host, _, source = fault.target.partition(":")
    cuts = faults.world.wire.cuts
    cuts[host, source] = cuts.get((host, source), 0) + 1

    def end() -> None:
        cuts[host, source] -= 1

    return end


def _refuse(faults: Faults, fault: Fault) -> Undo:
    """Writes are answered with a no. What broke the receiver took an entry with it, if ``arg`` names a server."""
    if fault.arg and fault.target == "dns":
        _delete_record(faults, Fault(fault.at, "delete_record", fault.arg))
    if fault.arg and fault.target == "proxy":
        _delete_registration(faults, Fault(fault.at, "delete_registration", fault.arg))
    return _refusing(faults, fault)


def _slow(faults: Faults, fault: Fault) -> Undo:
    trouble, factor = faults.world.wire.trouble(fault.target), float(fault.arg or 10)
    trouble.slow *= factor

    def end() -> None:
        trouble.slow /= factor

    return end


def _lose(faults: Faults, fault: Fault) -> Undo:
    when, _, number = fault.arg.partition(":")
    setattr(faults.world.wire.trouble(fault.target), f"lose_{when}", int(number or 1))
    return None


def _fail_task(faults: Faults, fault: Fault) -> Undo:
    """Proxmox takes the next order of that kind and its task ends with an error."""
    failing = faults.world.failing
    failing.append(fault.arg)

    def end() -> None:
        if fault.arg in failing:
            failing.remove(fault.arg)

    return end


def _hide(faults: Faults, fault: Fault) -> Undo:
    """Proxmox leaves one container out of its list: a right on it was lost, say. It knows its number all the same."""
    m, w = faults.machine(fault.target), faults.world
    if m is None:
        return None
    w.hidden.add(m.vmid)
    w.version += 1

    def end() -> None:
        w.hidden.discard(m.vmid)
        w.version += 1

    return end


def _duplicate(faults: Faults, fault: Fault) -> Undo:
    """A guest of another node has the number of a server's container."""
    m, twins = faults.machine(fault.target), faults.world.twins
    if m is None:
        return None
    twins.append(m.vmid)
    return lambda: twins.remove(m.vmid)


def _holdtag(faults: Faults, fault: Fault) -> Undo:
    """A person marks a container by Proxmox's own means: to be left alone."""
    m, w = faults.machine(fault.target), faults.world
    if m is None:
        return None
    m.tags |= {HOLD_TAG}
    w.version += 1

    def end() -> None:
        m.tags -= {HOLD_TAG}
        w.version += 1

    return end


def _database(faults: Faults, fault: Fault) -> Undo:
    faults.controllers.store.restart(fault.duration)
    return None


def _commit_lost(faults: Faults, fault: Fault) -> Undo:
    faults.controllers.store.lose_answer = int(fault.arg or 1)
    return None


def _clock(faults: Faults, fault: Fault) -> Undo:
    faults.controllers.store.skew_ms += int(fault.arg)
    return None


def _flush(faults: Faults, fault: Fault) -> Undo:
    faults.controllers.redis.flush()
    return None


def _twin(faults: Faults, fault: Fault) -> Undo:
    faults.controllers.twins += 1
    return None


def _node(faults: Faults, fault: Fault) -> Undo:
    w = faults.world
    if not w.nodes.get(fault.target, False):
        return None
    w.node_down(fault.target)
    return lambda: w.node_up(fault.target)


def _bridge(faults: Faults, fault: Fault) -> Undo:
    """The bridge starts anew: it has nothing, and pulls the list until it gets one."""
    w = faults.world
    w.registrations.clear()
    faults.touched("proxy", "restart", "")
    trouble = w.wire.trouble("proxy")
    trouble.down += 1

    def end() -> None:
        trouble.down -= 1
        faults.people.rehydrate()

    return end


def _stop_container(faults: Faults, fault: Fault) -> Undo:
    """By root, or by ``itself``: a kernel that ended it, say, which no task of Proxmox tells of."""
    m = faults.machine(fault.target)
    if m is not None and m.status == "running" and fault.arg == "itself":
        faults.world.halt(m)
        return None
    if m is not None and m.status == "running" and faults.world.nodes.get(m.node):

        def end() -> str:
            faults.world.halt(m)
            return "OK"

        faults.world.task("vzstop", m.vmid, m.node, 2.0, end, user=PERSON)
        faults.touched("proxmox", "stop", fault.target)
    return None


def _delete_record(faults: Faults, fault: Fault) -> Undo:
    name = faults.people.fqdn(fault.target)
    if name in faults.world.zone:
        faults.world.change_zone(name, {name: ()}, "deleted by hand", faults.controllers.server_of(fault.target), None, 0.0)
    return None


def _change_record(faults: Faults, fault: Fault) -> Undo:
    name = faults.people.fqdn(fault.target)
    if name in faults.world.zone:
        records = (Record(name, "A", "198.51.100.7", 60),)
        faults.world.change_zone(name, {name: records}, "changed by hand", faults.controllers.server_of(fault.target), None, 0.0)
    return None


def _stale_record(faults: Faults, fault: Fault) -> Undo:
    name = faults.people.fqdn(f"old-{fault.target}")
    labels = {name: (Record(name, "A", "203.0.113.10", 60),), OWNER_LABEL + name: (Record(OWNER_LABEL + name, "TXT", owner_text("gone")),)}
    faults.world.change_zone(name, labels, "left behind", "", None, 0.0)
    return None


def _delete_registration(faults: Faults, fault: Fault) -> Undo:
    if faults.world.registrations.pop(fault.target, None) is not None:
        faults.touched("proxy", "deleted by hand", fault.target)
    return None


def _stale_registration(faults: Faults, fault: Fault) -> Undo:
    name = f"old-{fault.target}"
    faults.world.registrations[name] = Registration(name, "10.20.200.200", 25565)
    faults.touched("proxy", "left behind", name)
    return None


def _crash(faults: Faults, fault: Fault) -> Undo:
    m = faults.machine(fault.target)
    if m is not None:
        faults.world.crash(m, recovers=fault.arg != "error")
        faults.touched("agents", "crash", fault.target)
    return None


def _agent(faults: Faults, fault: Fault) -> Undo:
    m = faults.machine(fault.target)
    if m is None or not m.agent_up:
        return None
    m.agent_up, m.agent_broken = False, True
    faults.touched("agents", "silent", fault.target)

    def end() -> None:
        if m.agent_broken:  # else somebody mended it
            faults.world.agent_back(m)

    return end


def _impostor(faults: Faults, fault: Fault) -> Undo:
    m = faults.machine(fault.target)
    if m is None:
        return None
    m.liar = "somebody-else"
    return lambda: setattr(m, "liar", "")


def _sluggish(faults: Faults, fault: Fault) -> Undo:
    m = faults.machine(fault.target)
    if m is None:
        return None
    m.slow = True
    return lambda: setattr(m, "slow", False)


def _missing(faults: Faults, fault: Fault) -> Undo:
    """The container is gone, record and all of the rest still there."""
    m = faults.machine(fault.target)
    if m is not None and m.lock is None:
        faults.world.remove(m)
        faults.touched("proxmox", "destroyed by hand", fault.target)
    return None


def _orphan(faults: Faults, fault: Fault) -> Undo:
    """A container with our tag that no record knows; a person removes it in time."""
    w = faults.world
    vmid = 30_000 + w.number() % 10_000
    m = w.machines[vmid] = Machine(vmid, next(iter(w.nodes)), "stopped", f"old-{fault.target}", tags=frozenset({OUR_TAG, server_tag("gone")}))
    m.made_at = w.loop.time()
    w.version += 1
    faults.people.strangers.add(vmid)
    w.loop.after(fault.duration or 1800, lambda: w.remove(m) if w.machines.get(vmid) is m else None)
    return None


def _people(name: str) -> Callable[[Faults, Fault], Undo]:
    def begin(faults: Faults, fault: Fault) -> Undo:
        undo: Undo = getattr(faults.people, name)(fault)
        return undo

    return begin


KINDS: Mapping[str, Callable[[Faults, Fault], Undo]] = {
    "death": _death, "pause": _pause, "host": _host, "cut": _cut, "down": _counter("down"), "slow": _slow, "lose": _lose,
    "refuse": _refuse, "partial": _counter("partial"), "lie": _counter("lying"), "database": _database, "commit_lost": _commit_lost,
    "clock": _clock, "flush": _flush, "twin": _twin, "node": _node, "bridge": _bridge, "stop_container": _stop_container,
    "delete_record": _delete_record, "change_record": _change_record, "stale_record": _stale_record, "crash": _crash, "agent": _agent,
    "delete_registration": _delete_registration, "stale_registration": _stale_registration, "impostor": _impostor, "sluggish": _sluggish,
    "freeze": _freeze, "late": _late, "fail_task": _fail_task, "hide": _hide, "duplicate": _duplicate, "holdtag": _holdtag,
    "missing": _missing, "orphan": _orphan, "order": _people("order"), "create": _people("create"), "suspend": _people("suspend"),
    "brake": _people("brake"), "level": _people("level"), "hold": _people("hold"), "approve": _people("approve"),
    "abandon": _people("abandon"), "policy": _people("policy"), "backup": _people("backup"),
}  # fmt: skip
