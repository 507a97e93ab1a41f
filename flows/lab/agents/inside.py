"""The agents of real containers: the real program, deployed by the real role. The lab only breaks and mends it, from inside each container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.lab.config import LabConfig
from flows.lab.part import PartError
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer, World

AGENT, GAME = "zlh-agent.service", "zlh-game.service"
#: What a deed runs in the container. A killed agent stays dead until it is revived: its unit would start it again by itself.
DEEDS: Mapping[str, str] = {
    "kill": f"systemctl kill --signal=KILL {AGENT}; systemctl stop {AGENT}",
    "freeze": f"systemctl kill --signal=STOP {AGENT}",
    "revive": f"systemctl kill --signal=CONT {AGENT} 2>/dev/null; systemctl reset-failed {AGENT} 2>/dev/null; systemctl start {AGENT}",
    "crash": f"systemctl is-active --quiet {GAME} && systemctl kill --signal=KILL {GAME}",
}
_STATE = f"systemctl show --property=LoadState,ActiveState {AGENT}; echo; systemctl show --property=ActiveState {GAME}"


class RealAgents:
    """``inspect()`` shows what was done to which agent; how it is, the agent itself says."""

    name = "agents"

    def __init__(self, config: LabConfig, world: World) -> None:
        assert config.lxc is not None
        self._network, self.port, self._world = config.lxc.network, config.agents.port, world
        self._done: dict[int, str] = {}

    @property
    def endpoints(self) -> dict[str, str]:
        return {"pool": self._network, "port": str(self.port)}

    async def stop(self) -> None: ...

    def inspect(self) -> dict[str, Any]:
        there = self._world.containers
        return {"port": self.port, "agents": {str(vmid): {"last_deed": deed} for vmid, deed in self._done.items() if vmid in there}}

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``kill`` (connections refused), ``freeze`` (accepts, never answers), ``revive``, ``crash`` the game; each with ``vmid``."""
        vmid = arguments.get("vmid")
        container = self._world.containers.get(vmid) if isinstance(vmid, int) else None
        if container is None:
            raise PartError(f"vmid: there is no container {vmid!r}")
        if op not in DEEDS:
            raise PartError(f"op: {op!r} is none of {', '.join(DEEDS)}")
        if (await self._ask(container)).get("LoadState") != "loaded":
            raise PartError(f"vmid: {container.vmid} has no agent")
        code, text = await self._run(container, DEEDS[op])
        if code != 0:
            raise PartError(f"vmid: nothing runs in {container.vmid}" if op == "crash" and not text else f"{op}: {text or f'ended with {code}'}")
        self._done[container.vmid] = op
        state = await self._ask(container)
        alive = state.get("ActiveState") == "active"
        return {"vmid": container.vmid, "alive": alive, "frozen": op == "freeze", "workload": state.get("game", "unknown")}

    async def _ask(self, container: LabContainer) -> dict[str, str]:
        code, text = await self._run(container, _STATE)
        if code != 0:
            raise PartError(f"{container.vmid}: {text}")
        agent, _, game = text.partition("\n\n")
        found = dict(line.split("=", 1) for line in agent.splitlines() if "=" in line)
        return found | {"game": game.partition("=")[2].strip()}

    async def _run(self, container: LabContainer, command: str) -> tuple[int, str]:
        try:
            ended = await self._world.substance.execute(container, ["/bin/sh", "-c", command])
        except SubstanceError as error:
            raise PartError(f"{container.vmid}: {error}") from error
        return ended.code, (ended.out if ended.code == 0 else ended.err).decode(errors="replace").strip()
