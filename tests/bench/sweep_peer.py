"""N agents in one process, each on its own loopback address: the other end of the sweep benchmark. Started by :mod:`sweep`.

``python -m tests.bench.sweep_peer CA_DIR COUNT PLAIN_PORT_FD TLS_PORT_FD`` is not for people: both sockets are inherited. Answers are
prepared beforehand, so that what is measured is the asking.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import socket
import ssl
import sys
import tempfile
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: Addresses per certificate: one each would need gigabytes of OpenSSL contexts in this one process.
SHARED = 250
BASE = int(ipaddress.ip_address("127.64.0.1"))


def address(index: int) -> str:
    return str(ipaddress.ip_address(BASE + index))


def server_id(index: int) -> str:
    return f"00000000-0000-7000-8000-{index:012d}"


def answer(index: int) -> bytes:
    body = json.dumps(
        {
            "server_id": server_id(index),
            "version": "1.0.0",
            "state": "running",
            "ready": True,
            "operation": None,
            "maintenance": False,
            "uptime_s": 12.5,
            "restarts": 0,
            "last_crash": None,
            "players": 3,
            "memory": {"used": 1_000_000, "total": 2_000_000},
            "disk": {"used": 1_000_000, "total": 2_000_000},
            "provisioning_complete": True,
            "missing": [],
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def contexts(ca_dir: Path, count: int) -> list[ssl.SSLContext]:
    """One TLS context per SHARED addresses, signed by the CA in ``ca_dir``."""
    ca = x509.load_pem_x509_certificate((ca_dir / "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((ca_dir / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    now = dt.datetime.now(dt.UTC)
    made = []
    for first in range(0, count, SHARED):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(address(i))) for i in range(first, min(first + SHARED, count))]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"bench {first}")]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(leaf.public_bytes(serialization.Encoding.PEM))
            file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
            file.flush()
            context.load_cert_chain(file.name)
        made.append(context)
    return made


class Answering(asyncio.Protocol):
    def __init__(self, reply: bytes) -> None:
        self._reply, self._seen = reply, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if b"\r\n\r\n" in self._seen:
            self._transport.write(self._reply)
            self._transport.close()


async def accept(listener: socket.socket, replies: list[bytes], tls: list[ssl.SSLContext] | None) -> None:
    """Chooses answer and certificate by the address that was called."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[object]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        index = int(ipaddress.ip_address(connection.getsockname()[0])) - BASE
        if not 0 <= index < len(replies):
            connection.close()
            continue
        made = loop.connect_accepted_socket(partial(Answering, replies[index]), connection, ssl=tls[index // SHARED] if tls else None)
        task: asyncio.Task[object] = asyncio.ensure_future(made)
        tasks.add(task)
        task.add_done_callback(lambda t: (tasks.discard(t), t.cancelled() or t.exception()))


async def main(ca_dir: Path, count: int, plain: int, secure: int) -> None:
    replies = [answer(i) for i in range(count)]
    tls = contexts(ca_dir, count)
    listeners = [socket.socket(fileno=fd) for fd in (plain, secure)]
    for listener in listeners:
        listener.setblocking(False)
    print("ready", flush=True)
    await asyncio.gather(accept(listeners[0], replies, None), accept(listeners[1], replies, tls))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
