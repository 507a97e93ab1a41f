"""The agents' port. One probe of everybody is one event: who is silent costs the whole time-out, twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from flows.act.playbook_variables import AGENT_VERSION
from flows.domain.agent import AgentStatus
from flows.domain.known import Known, Unknown
from flows.domain.server import ContainerType, Server
from flows.errors import BadAnswer, Unreachable
from flows.observe.agents import DISTRUSTED
from flows.simulate.keyed import draw
from flows.simulate.loop import BARE, here
from flows.simulate.world import Machine, World

T = TypeVar("T")

LIMIT_S = 3.0


class Agents:
    def __init__(self, world: World) -> None:
        self.w = world

    def _at(self, server: Server) -> Machine:
        """The agent that answers at the server's address. Raises Unreachable."""
        machine = self.w.at_address(server.address)
        if machine is None or not machine.agent_up:
            raise Unreachable(f"agent of {server.name}", why="no answer")
        return machine

    def _status(self, machine: Machine) -> AgentStatus:
        return AgentStatus(
            machine.liar or machine.server_id,
            AGENT_VERSION,
            machine.state,
            machine.ready,
            machine.job,
            uptime_s=self.w.loop.time() - machine.since,
            restarts=machine.restarts,
            last_crash={"class": "out_of_memory", "count": machine.crashes} if machine.crashes else None,
        )

    async def probe(self, servers: Sequence[Server]) -> Mapping[str, Known[AgentStatus] | Unknown]:
        w, process = self.w, here()
        if process is not None and process.at("wire:agents:probe"):
            await BARE
        trouble = w.wire.trouble("agents")
        number = w.wire.numbers[("agents", "probe", "")] = w.wire.numbers.get(("agents", "probe", ""), 0) + 1
        reachable = w.wire.open(process.host if process is not None else "", "agents")
        await w.loop.nap(0.03 * trouble.slow * (1 + draw(w.seed, "probe", number)))
        found: dict[str, Known[AgentStatus] | Unknown] = {}
        silent = not reachable or trouble.slow > 50
        for server in servers:
            machine = w.at_address(server.address) if reachable else None
            if machine is None or not machine.agent_up or (trouble.partial and draw(w.seed, "partial", server.id, trouble.partial) < 0.4):
                found[server.id] = Unknown("no answer, twice")
                silent = True
            elif (machine.liar or machine.server_id) != server.id:
                found[server.id] = Unknown(f"{DISTRUSTED}it says it is {machine.liar or machine.server_id}")
            else:
                found[server.id] = Known(self._status(machine))
                if process is not None:
                    process.told.setdefault("answered", {})[server.id] = machine.ready
        if silent:
            await w.loop.nap(2 * LIMIT_S)
        return found

    async def _read(self, verb: str, server: Server, answer: Callable[[], T]) -> T:
        try:
            return await self.w.wire.call("agents", verb, server.name, answer, write=False, limit_s=LIMIT_S)
        except Unreachable:
            return await self.w.wire.call("agents", verb, server.name, answer, write=False, limit_s=LIMIT_S)

    def _trusted(self, server: Server) -> Machine:
        machine = self._at(server)
        said = machine.liar or machine.server_id
        if said != server.id:
            raise BadAnswer(f"agent of {server.name}", why=f"another identity: it says it is {said}")
        return machine

    async def status(self, server: Server) -> AgentStatus:
        return await self._read("status", server, lambda: self._status(self._trusted(server)))

    async def health(self, server: Server) -> Mapping[str, object]:
        return await self._read("health", server, lambda: {"version": AGENT_VERSION, "server_id": self._trusted(server).server_id})

    async def ready(self, server: Server) -> tuple[bool, str]:
        def answer() -> tuple[bool, str]:
            machine = self._trusted(server)
            return (True, "") if machine.ready else (False, f"it is {machine.state}")

        return await self._read("ready", server, answer)

    async def _order(self, verb: str, server: Server, token: int) -> None:
        if server.ctype is ContainerType.DEV:
            return
        process, sent = here(), self.w.loop.time()

        def effect() -> None:
            self.w.order(self._at(server), verb, token, process, sent)

        await self.w.wire.call("agents", verb, server.name, effect, write=True, limit_s=LIMIT_S)

    async def start(self, server: Server, token: int) -> None:
        await self._order("start", server, token)

    async def stop(self, server: Server, token: int) -> None:
        await self._order("stop", server, token)

    async def restart(self, server: Server, token: int) -> None:
        await self._order("restart", server, token)
