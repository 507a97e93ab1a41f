"""UDP and TCP listeners of the name server, its faults, and changes behind the product's back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import dns.exception
import dns.rcode
import dns.rdatatype
import dns.tsig

from flows.errors import BadInput
from flows.lab.config import DnsConfig, split_bind
from flows.lab.dns.orders import parse
from flows.lab.dns.server import Request, Server
from flows.lab.dns.zone import Zone
from flows.lab.faults import Faults, Mode
from flows.lab.part import PartError

#: Seconds that a TCP connection may idle.
IDLE_S = 30.0
#: Tries to get the same port for UDP and TCP where the system chooses.
PORT_TRIES = 20
_FAULTS = (Mode.UNREACHABLE, Mode.ERROR, Mode.SLOW, Mode.HOLD, Mode.HANG, Mode.LOSE_ANSWER)


class _Dropped(Exception):
    """A fault cuts the connection, or the datagram gets no answer."""


class DnsPart:
    """``inspect()`` shows serial, records and every UPDATE with its outcome."""

    name = "dns"

    def __init__(self, config: DnsConfig, faults: Faults) -> None:
        try:
            key = dns.tsig.Key(config.tsig_name, config.tsig_secret.get_secret_value(), config.tsig_algorithm)
            dns.tsig.get_context(key)  # type: ignore[no-untyped-call] # untyped there; refuses an unknown algorithm
            self.zone = Zone(config.zone)
        except (dns.exception.DNSException, ValueError, NotImplementedError) as error:
            raise BadInput("dns", config.zone, why=f"zone or TSIG key is not valid: {type(error).__name__}") from None
        self.server = Server(self.zone, key)
        self._host, self.port = split_bind(config.bind)
        self._faults = faults
        self._tcp: asyncio.Server | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def endpoints(self) -> dict[str, str]:
        return {"server": f"{self._host}:{self.port}", "zone": self.zone.origin.to_text(omit_final_dot=True)}

    async def open(self) -> None:
        """Raises OSError where the port is taken."""
        loop = asyncio.get_running_loop()
        for remaining in reversed(range(PORT_TRIES)):
            tcp = await asyncio.start_server(self._serve_tcp, self._host, self.port)
            port = tcp.sockets[0].getsockname()[1]
            try:
                udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=(self._host, port))
            except OSError:
                tcp.close()
                if self.port or not remaining:
                    raise
                continue
            self._tcp, self._udp, self.port = tcp, udp, port
            return

    async def stop(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._udp = self._tcp = None

    async def restart(self) -> None:
        """The zone is on its disk: records stay."""
        await self.stop()
        await self.open()

    def inspect(self) -> dict[str, Any]:
        records = [
            {
                "name": name.to_text(omit_final_dot=True).lower(),
                "rtype": dns.rdatatype.to_text(rdata.rdtype),
                "value": rdata.to_text(),
                "ttl": ttl,
            }
            for name, ttl, rdata in self.zone.records()
        ]
        return {
            "zone": self.zone.origin.to_text(omit_final_dot=True),
            "serial": self.zone.serial,
            "records": records,
            "updates": list(self.server.updates),
        }

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :mod:`flows.lab.dns.orders`."""
        order = parse(op, arguments, self.zone.origin)
        if order.op == "delete":
            if not self.zone.remove(order.name, order.rtype):
                raise PartError(f"name: {order.name} has no such record")
        else:
            assert order.rtype is not None
            self.zone.put(order.name, order.rtype, list(order.values), order.ttl, add=order.op == "add")
        self.zone.bump()
        return {"name": order.name.to_text(omit_final_dot=True), "serial": self.zone.serial}

    # --- the wire ------------------------------------------------------------------------------------------------

    async def answer(self, wire: bytes, *, tcp: bool) -> list[bytes]:
        """The answer's messages; faults are played on the way. Raises _Dropped."""
        understood = self.server.understand(wire, tcp=tcp)
        if understood is None:
            raise _Dropped
        if isinstance(understood, bytes):
            return [understood]
        fault = self._faults.hit("dns", understood.call, *_FAULTS)
        await self._faults.held(fault)
        if fault is not None:
            if fault.mode is Mode.UNREACHABLE:
                raise _Dropped
            if fault.mode is Mode.HANG:
                await asyncio.sleep(3600)
            if fault.mode is Mode.ERROR:
                return [self.server.fail(understood, dns.rcode.SERVFAIL)]
            if fault.mode is Mode.SLOW:
                await asyncio.sleep(fault.seconds)
        answers = self.server.carry_out(understood)
        if fault is not None and fault.mode is Mode.LOSE_ANSWER:
            raise _Dropped
        return self._cut_short(understood, answers)

    def _cut_short(self, request: Request, answers: list[bytes]) -> list[bytes]:
        """A partial transfer breaks off half way; an empty last element means: then hang up."""
        if not request.transfer or self._faults.hit("dns", request.call, Mode.PARTIAL) is None:
            return answers
        small = self.server.transfer(request, chunk=1)
        return [*small[: max(1, len(small) // 2)], b""]

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve_datagram(self, wire: bytes, peer: Any) -> None:
        try:
            answers = await self.answer(wire, tcp=False)
        except _Dropped:
            return
        if self._udp is not None and not self._udp.is_closing():
            for answer in answers:
                self._udp.sendto(answer, peer)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(length)
                for answer in await self.answer(wire, tcp=True):
                    if not answer:
                        return
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (_Dropped, asyncio.IncompleteReadError, ConnectionError, TimeoutError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, part: DnsPart) -> None:
        self._part = part

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._part.spawn(self._part.serve_datagram(data, addr))
