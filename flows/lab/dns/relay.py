"""The wire to a name server in a process of its own: listens for it, passes every message on unchanged, and plays faults on the way.

Signatures hold over it, because no byte changes. A fault is armed for target ``dns`` and matches ``QUERY name``, ``UPDATE name``,
``AXFR zone``, as with the in-process server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.update

from flows.lab.dns.server import call_of
from flows.lab.faults import Faults, Mode

#: Seconds that a connection may idle, and that the server may take for a datagram.
IDLE_S, ANSWER_S = 30.0, 5.0
#: Tries to get the same port for UDP and TCP where the system chooses.
PORT_TRIES = 20
_FAULTS = (Mode.UNREACHABLE, Mode.ERROR, Mode.SLOW, Mode.HOLD, Mode.HANG, Mode.LOSE_ANSWER)


class _Dropped(Exception):
    """A fault cuts the connection, or the datagram gets no answer."""


class _Verdict:
    """What becomes of one message: ``refusal`` instead of passing it on, or what happens to its answer."""

    def __init__(self, *, refusal: bytes | None = None, lose: bool = False, partial: bool = False, entry: dict[str, Any] | None = None) -> None:
        self.refusal, self.lose, self.partial, self.entry = refusal, lose, partial, entry


class Relay:
    """``updates`` lists every UPDATE that came, with the server's answer."""

    def __init__(self, bind: tuple[str, int], faults: Faults) -> None:
        self.host, self.port = bind
        self.upstream = ("127.0.0.1", 0)
        self.updates: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._faults = faults
        self._tcp: asyncio.Server | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Raises OSError where the port is taken."""
        loop = asyncio.get_running_loop()
        for remaining in reversed(range(PORT_TRIES)):
            tcp = await asyncio.start_server(self._serve_tcp, self.host, self.port)
            port = tcp.sockets[0].getsockname()[1]
            try:
                udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=(self.host, port))
            except OSError:
                tcp.close()
                if self.port or not remaining:
                    raise
                continue
            self._tcp, self._udp, self.port = tcp, udp, port
            return

    async def close(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._udp = self._tcp = None

    async def _judge(self, wire: bytes) -> _Verdict:
        """Raises _Dropped."""
        try:
            message = dns.message.from_wire(wire, keyring=False)
        except dns.exception.DNSException:
            return _Verdict()
        if message.flags & dns.flags.QR:
            return _Verdict()
        call = call_of(message)
        entry = None
        if isinstance(message, dns.update.UpdateMessage):
            names = sorted({rrset.name.to_text(omit_final_dot=True).lower() for rrset in message.update})
            entry = {"at": time.time(), "names": names, "signed": message.tsig is not None, "rcode": None}
            self.updates.append(entry)
        fault = self._faults.hit("dns", call, *_FAULTS)
        await self._faults.held(fault)
        if fault is not None:
            if fault.mode is Mode.UNREACHABLE:
                raise _Dropped
            if fault.mode is Mode.HANG:
                await asyncio.sleep(3600)
            if fault.mode is Mode.ERROR:
                return _Verdict(refusal=_servfail(wire), entry=entry)
            if fault.mode is Mode.SLOW:
                await asyncio.sleep(fault.seconds)
        partial = call.startswith("AXFR ") and self._faults.hit("dns", call, Mode.PARTIAL) is not None
        return _Verdict(lose=fault is not None and fault.mode is Mode.LOSE_ANSWER, partial=partial, entry=entry)

    async def serve_datagram(self, wire: bytes, peer: Any) -> None:
        with contextlib.suppress(_Dropped, OSError, TimeoutError):
            verdict = await self._judge(wire)
            answer = verdict.refusal
            if answer is None:
                answer = await self._ask(wire)
                _note(verdict, answer)
            if not verdict.lose and self._udp is not None and not self._udp.is_closing():
                self._udp.sendto(answer, peer)

    async def _ask(self, wire: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Answer(answer), remote_addr=self.upstream)
        try:
            transport.sendto(wire)
            async with asyncio.timeout(ANSWER_S):
                return await answer
        finally:
            transport.close()

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            answers, there = await asyncio.open_connection(*self.upstream)
            while True:
                async with asyncio.timeout(IDLE_S):
                    wire = await _frame(reader)
                verdict = await self._judge(wire)
                if verdict.refusal is not None:
                    writer.write(_framed(verdict.refusal))
                    continue
                there.write(_framed(wire))
                if _is_transfer(wire):
                    await self._pass_all(answers, reader, writer, verdict)
                else:
                    await self._pass_one(answers, writer, verdict)
        except* (_Dropped, asyncio.IncompleteReadError, OSError, TimeoutError, asyncio.CancelledError):
            pass  # the connection simply ends
        finally:
            self._tasks.discard(task)
            if there is not None:
                there.close()
            writer.close()

    async def _pass_one(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, verdict: _Verdict) -> None:
        async with asyncio.timeout(IDLE_S):
            answer = await _frame(answers)
        _note(verdict, answer)
        if verdict.lose:
            raise _Dropped
        if verdict.partial:
            writer.write(_framed(answer)[: len(answer) // 2])
            await writer.drain()
            raise _Dropped
        writer.write(_framed(answer))
        await writer.drain()

    async def _pass_all(self, answers: asyncio.StreamReader, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, verdict: _Verdict) -> None:
        """A transfer's messages, until its client hangs up: nothing but their content tells the last one, and only the client reads that."""
        hung_up = asyncio.ensure_future(reader.read(1))
        try:
            while not hung_up.done():
                one = asyncio.ensure_future(self._pass_one(answers, writer, verdict))
                await asyncio.wait({one, hung_up}, return_when=asyncio.FIRST_COMPLETED)
                if not one.done():
                    one.cancel()
                    break
                await one
        finally:
            hung_up.cancel()
        raise _Dropped

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._relay.spawn(self._relay.serve_datagram(data, addr))


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


def _framed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


def _is_transfer(wire: bytes) -> bool:
    try:
        message = dns.message.from_wire(wire, keyring=False)
    except dns.exception.DNSException:
        return False
    return not isinstance(message, dns.update.UpdateMessage) and call_of(message).startswith("AXFR ")


def _note(verdict: _Verdict, answer: bytes) -> None:
    if verdict.entry is not None and len(answer) >= 12:
        verdict.entry["rcode"] = dns.rcode.to_text(dns.rcode.Rcode(answer[3] & 0x0F))


def _servfail(wire: bytes) -> bytes:
    """An answer that the server itself never gave, so it is not signed."""
    return wire[:2] + bytes([0x80 | (wire[2] & 0x78), int(dns.rcode.SERVFAIL)]) + bytes(8)
