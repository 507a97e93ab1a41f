"""How much the controller did by itself: what broke, what was mended without a person, how long it took, who was called, for what.

A drift is a difference between the world and what should be, found by looking at the world once a minute: a ready game that is not registered or
has no record, an entry that is nobody's, a suspended customer's game that runs, an operation that does not end. Its repair is wrong if it
changed a thing that was right, on a server that nobody had touched.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from flows.clients.dns_names import OWNER_LABEL
from flows.simulate.invariants.base import Scene
from flows.simulate.world import Effect, Post

WEEK_S = 7 * 86_400.0


class Autonomy:
    """Hears like an invariant, and judges nothing."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._open: dict[str, float] = {}
        self.healed: list[float] = []
        self.wrong: list[str] = []
        self._pages: list[Post] = []
        self._seen = 0

    def minute(self) -> None:
        present = self._drifts()
        now = self.scene.now
        for key in [k for k in self._open if k not in present]:
            self.healed.append(now - self._open.pop(key))
        for key in present:
            self._open.setdefault(key, now)
        posts = self.scene.world.posts
        self._pages += [post for post in posts[self._seen :] if post.ping]
        self._seen = len(posts)

    def effect(self, effect: Effect) -> None:
        """A repair that takes a ready, wanted server off the edge, or puts one there that should not be."""
        if effect.process is None or effect.process.kind != "sweep" or not effect.changed:
            return
        server = self.scene.ledger.servers.get(effect.server_id)
        machine = self.scene.world.machines.get(server.vmid) if server is not None else None
        if server is None or machine is None:
            return
        wanted = server.published and machine.ready and not self.scene.held(server.id, server.node)
        if effect.verb in ("deregister", "withdraw", "stop") and wanted and server.id not in self._touched():
            entry = self.scene.world.registrations.get(server.name)
            if entry is None or entry.address == server.address:
                self.wrong.append(f"{effect.verb} of {effect.target} at {effect.at:.0f} s")
        if effect.verb in ("register", "publish") and not server.published:
            self.wrong.append(f"{effect.verb} of {effect.target} at {effect.at:.0f} s")

    def _touched(self) -> set[str]:
        """Servers whose intent to be repaired is under way: their own repair has just closed the edge."""
        return {i.server_id for i in self.scene.ledger.open() if i.server_id is not None and i.action == "suspend_workload"}

    def _drifts(self) -> set[str]:
        scene = self.scene
        found: set[str] = set()
        names = {s.name: s for s in scene.ledger.servers.values() if s.lives}
        for server in names.values():
            machine = scene.world.machines.get(server.vmid)
            if machine is None or scene.held(server.id, server.node):
                continue
            if server.published and machine.ready:
                if server.name not in scene.world.registrations:
                    found.add(f"unregistered {server.name}")
                records = scene.world.zone.get(f"{server.name}.{scene.settings.dns.zone}", ())
                if not any(r.value == scene.settings.proxy.player_address for r in records):
                    found.add(f"unpublished {server.name}")
            elif server.published and (machine.agent_up or machine.status == "stopped") and server.name in scene.world.registrations:
                found.add(f"unready {server.name}")
        found |= {f"registered {name}" for name in scene.world.registrations if name not in names}
        owned = (label.removeprefix(OWNER_LABEL) for label in scene.world.zone if label.startswith(OWNER_LABEL))
        found |= {f"published {name}" for name in owned if name.partition(".")[0] not in names}
        late = scene.ledger.now_ms() - 20 * 60_000
        found |= {f"late {row[0]}" for row in scene.ledger.rows("SELECT id FROM operations WHERE live_server IS NOT NULL AND created_at < ?", late)}
        return found

    def report(self, hours: float) -> dict[str, Any]:
        """For people, and for docs/benchmarks.md."""
        times = sorted(self.healed)
        kinds = Counter(_kind(post.key) for post in self._pages)
        outcomes = Counter(
            f"{action} {outcome}"
            for action, outcome, number in self.scene.ledger.rows("SELECT action, outcome, COUNT(*) FROM repairs GROUP BY action, outcome")
            for _ in range(number)
        )
        return {
            "faults injected": self.scene.faults.injected,
            "drifts healed without a person": len(times),
            "drifts left": sorted(self._open),
            "median time to heal, s": round(median(times)) if times else 0,
            "p99 time to heal, s": round(times[min(len(times) - 1, int(len(times) * 0.99))]) if times else 0,
            "wrong repairs": self.wrong,
            "pages per week": round(len(self._pages) / (hours * 3600 / WEEK_S), 1),
            "pages": [f"{number} × {kind}: {self._advice(kind)}" for kind, number in kinds.most_common(40)],
            "repairs": [f"{number} × {what}" for what, number in sorted(outcomes.items())],
        }

    def _advice(self, kind: str) -> str:
        """What the message itself told a person to do: its command line."""
        for post in self._pages:
            if _kind(post.key) == kind:
                commands = [line for line in post.text.splitlines() if "zlh " in line or "pct " in line]
                return commands[0].strip() if commands else "nothing: for information"
        return ""


def _kind(key: str) -> str:
    """What a page is about, whoever it is about: ``escalated workload_stopped``, ``provisioning_failed``."""
    kind, _, rest = key.partition("/")
    check, more, _ = rest.partition("/")
    return f"{kind} {check}" if more and check.replace("_", "").isalpha() else kind
