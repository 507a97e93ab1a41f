"""Ansible's port: a play takes its time, converges, and dies with the process that supervises it."""

from __future__ import annotations

from collections.abc import Callable

from flows.domain.ports import Play, PlayResult
from flows.errors import DeadlineExceeded
from flows.simulate.loop import BARE, here
from flows.simulate.world import World

#: Seconds per play, from and to.
TAKES_S = {
    "bootstrap.yml": (5.0, 12.0), "deploy_agent.yml": (12.0, 30.0), "preseed_fabric.yml": (20.0, 60.0), "dev_environment.yml": (30.0, 90.0),
    "restart_agent.yml": (3.0, 8.0),
}  # fmt: skip
#: Plays that enter the container through its node, by its VMID: its own address need not answer.
_THROUGH_NODE = "restart_agent.yml"
_KEYS = {"ssh-ed25519": "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"}


class Runner:
    def __init__(self, world: World) -> None:
        self.w = world
        self._number = 0

    async def run(self, play: Play, on_event: Callable[[str], None] | None = None) -> PlayResult:
        w, process, server = self.w, here(), play.server
        self._number += 1
        if process is not None and process.at(f"wire:ssh:{play.playbook}"):
            await BARE
        low, high = TAKES_S[play.playbook]
        takes = w.wait(low, high, play.playbook, server.name, self._number) * w.wire.trouble("ssh").slow
        sent = w.loop.time()
        await w.loop.nap(min(takes, play.timeout_s))
        if takes > play.timeout_s:
            raise DeadlineExceeded(play.playbook, why="it took too long")
        machine = w.at_node(server.vmid, server.node) if play.playbook == _THROUGH_NODE else w.at_address(server.address)
        if machine is None or not w.wire.open(process.host if process is not None else "", "ssh"):
            return PlayResult(False, False, unreachable=True, tail="no route to host")
        if w.wire.trouble("ssh").refusing:
            return PlayResult(False, True, tail="a mirror is unreachable", failed_task="packages")
        if play.playbook == "deploy_agent.yml":
            machine.server_id, machine.agent, machine.agent_up, machine.agent_broken, machine.liar = server.id, True, True, False, ""
        if play.playbook == "dev_environment.yml":
            machine.dev, machine.state, machine.ready = True, machine.state.RUNNING, True
        if play.playbook == "restart_agent.yml":
            if not machine.agent:
                return PlayResult(False, False, tail="Could not find the requested service zlh-agent: host", failed_task="restart its service")
            silent = not machine.agent_up
            w.agent_back(machine)
            w.effect("agents", "restart of the agent", machine.name, machine.server_id, process, changed=silent, sent=sent)
        return PlayResult(True, True, facts={"host_keys": _KEYS})
