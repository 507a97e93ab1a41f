"""Knot DNS as the lab's name server: a process of its own, with its configuration and storage in the lab's directory, on loopback.

It dies with the lab (PR_SET_PDEATHSIG), and one that outlived a lab all the same is known by its command line, which names the configuration,
and ended before a new one starts. The zone survives both: it is made once, and belongs to the server from then on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update
import dns.xfr
import dns.zone

from flows.errors import AutomationError, BadInput
from flows.lab.config import DnsConfig, split_bind
from flows.lab.dns.orders import parse
from flows.lab.dns.relay import Relay
from flows.lab.faults import Faults
from flows.lab.part import PartError
from flows.lab.serving import free_port

#: Seconds until it answers, until it ends, and per call of ours.
READY_S, END_S, CALL_S = 20.0, 5.0, 5.0
#: Tries to start it on a port that was free a moment ago.
TRIES = 3
LAB_KEY = "zlh-lab"

_CONFIG = """\
# Made by the lab at each start.
server:
    rundir: "{directory}/run"
    listen: 127.0.0.1@{port}
    identity: ""
    version: ""
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: "{directory}/knot.log"
    any: info
database:
    storage: "{directory}/storage"
key:
  - id: "{product_name}"
    algorithm: {product_algorithm}
    secret: "{product_secret}"
  - id: "{lab_name}"
    algorithm: hmac-sha256
    secret: "{lab_secret}"
acl:
  - id: keys
    key: ["{product_name}", "{lab_name}"]
    action: [transfer, update]
zone:
  - domain: "{zone}"
    storage: "{directory}/storage"
    file: "{file}"
    acl: keys
    zonefile-sync: 0
"""


class KnotPart:
    """``inspect()`` shows serial and records (by a transfer of its own), and every UPDATE with its answer."""

    name = "dns"

    def __init__(self, config: DnsConfig, faults: Faults, directory: Path) -> None:
        """Raises BadInput for a zone or key that cannot be one."""
        try:
            self.origin = dns.name.from_text(config.zone)
            key = dns.tsig.Key(config.tsig_name, config.tsig_secret.get_secret_value(), config.tsig_algorithm)
            dns.tsig.get_context(key)  # type: ignore[no-untyped-call] # untyped there; refuses an unknown algorithm
        except (dns.exception.DNSException, ValueError, NotImplementedError) as error:
            raise BadInput("dns", config.zone, why=f"zone or TSIG key is not valid: {type(error).__name__}") from None
        if '"' in str(directory) or "\n" in str(directory):
            raise BadInput("state_file", str(directory), why="its directory has a quotation mark or line break in its name")
        self._directory = directory.resolve()
        self._product = key
        self._key = dns.tsig.Key(LAB_KEY, base64.b64encode(secrets.token_bytes(32)).decode(), "hmac-sha256")
        self._relay = Relay(split_bind(config.bind), faults)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def endpoints(self) -> dict[str, str]:
        return {"server": f"{self._relay.host}:{self._relay.port}", "zone": self._plain(self.origin)}

    async def open(self) -> None:
        """Raises OSError where the port is taken, AutomationError where Knot is missing or does not start."""
        await asyncio.to_thread(clean, self._directory)
        await self._begin()
        try:
            await self._relay.open()
        except BaseException:
            await self._end()
            raise

    async def stop(self) -> None:
        await self._relay.close()
        await self._end()

    async def restart(self) -> None:
        """The zone is on its disk: records stay."""
        await self.stop()
        await self._begin()
        await self._relay.open()

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _begin(self) -> None:
        what = "starting Knot DNS"
        path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
        knotd, leash = shutil.which("knotd", path=path), shutil.which("setpriv", path=path)
        if knotd is None or leash is None:
            missing = "knotd" if knotd is None else "setpriv"
            raise AutomationError(what, why=f"there is no {missing} here", remedy="install it: playbooks/lab.yml does (apt-get install knot)")
        for remaining in reversed(range(TRIES)):
            port = free_port()
            try:
                config = await asyncio.to_thread(self._write, port)
                with (self._directory / "output.txt").open("wb") as output:
                    self._process = await asyncio.create_subprocess_exec(
                        leash,
                        "--pdeathsig",
                        "KILL",
                        knotd,
                        "-c",
                        str(config),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env={"PATH": path},
                    )
            except OSError as error:
                raise AutomationError(what, why=error.strerror or str(error), remedy=f"look at {self._directory}") from error
            self._relay.upstream = ("127.0.0.1", port)
            try:
                await self._answers(what)
                return
            except AutomationError:
                await self._end()
                if not remaining:
                    raise

    def _write(self, port: int) -> Path:
        """Configuration, and the zone where there is none yet. Secrets are in a 0600 file and in no argv."""
        storage = self._directory / "storage"
        for directory in (self._directory, storage, self._directory / "run"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for stale in ("knot.log", "run/knot.pid"):  # a killed one's process id may be somebody else's by now: Knot would refuse to start
            (self._directory / stale).unlink(missing_ok=True)
        zone = storage / f"{self._plain(self.origin)}.zone"
        if not zone.exists():
            server = dns.name.from_text("ns1", self.origin)
            mail = dns.name.from_text("hostmaster", self.origin)
            text = f"{self.origin} 60 SOA {server} {mail} 1 3600 600 86400 60\n{self.origin} 60 NS {server}\n{server} 60 A 127.0.0.1\n"
            _put(zone, text)
        config = self._directory / "knot.conf"
        _put(
            config,
            _CONFIG.format(
                directory=self._directory,
                port=port,
                zone=self.origin.to_text(),
                file=zone.name,
                product_name=self._product.name.to_text(),
                product_algorithm=self._product.algorithm.to_text(omit_final_dot=True),
                product_secret=base64.b64encode(self._product.secret).decode(),
                lab_name=self._key.name.to_text(),
                lab_secret=base64.b64encode(self._key.secret).decode(),
            ),
        )
        return config

    async def _answers(self, what: str) -> None:
        """Until it is authoritative for the zone."""
        deadline = time.monotonic() + READY_S
        query = dns.message.make_query(self.origin, "SOA")
        while True:
            if self._process is None or self._process.returncode is not None:
                raise AutomationError(what, why=f"it ended:\n{self._tail()}", remedy=f"see {self._directory}/knot.log")
            with contextlib.suppress(OSError, EOFError, dns.exception.DNSException):
                answer = await dns.asyncquery.tcp(query, self._relay.upstream[0], 1.0, self._relay.upstream[1])
                if answer.rcode() == dns.rcode.NOERROR and answer.answer:
                    return
            if time.monotonic() > deadline:
                raise AutomationError(what, why=f"no answer within {READY_S:g} s:\n{self._tail()}", remedy=f"see {self._directory}/knot.log")
            await asyncio.sleep(0.03)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            try:
                async with asyncio.timeout(END_S):
                    await process.wait()
                    return
            except TimeoutError:
                continue

    def _tail(self) -> str:
        lines: list[str] = []
        for name in ("output.txt", "knot.log"):
            with contextlib.suppress(OSError):
                lines += (self._directory / name).read_text(errors="replace").splitlines()
        return "\n".join(lines[-8:])

    # ── its content ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def inspect(self) -> dict[str, Any]:
        """``serial`` is null, and ``error`` says why, where the server does not answer."""
        found: dict[str, Any] = {"zone": self._plain(self.origin), "serial": None, "records": [], "updates": list(self._relay.updates)}
        zone = dns.zone.Zone(self.origin, relativize=False)
        query, _ = dns.xfr.make_query(zone, keyring=self._key)
        try:
            dns.query.inbound_xfr(self._relay.upstream[0], zone, query, self._relay.upstream[1], CALL_S, CALL_S)
        except (OSError, EOFError, dns.exception.DNSException, ValueError) as error:
            return {**found, "error": f"no transfer from Knot: {error or type(error).__name__}"}
        for name, node in sorted(zone.nodes.items()):
            for rdataset in sorted(node.rdatasets, key=lambda rdataset: rdataset.rdtype):
                rtype = dns.rdatatype.to_text(rdataset.rdtype)
                if rtype == "SOA":
                    found["serial"] = rdataset[0].serial
                    continue
                plain = self._plain(name).lower()
                found["records"] += [{"name": plain, "rtype": rtype, "value": rdata.to_text(), "ttl": rdataset.ttl} for rdata in rdataset]
        return found

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :mod:`flows.lab.dns.orders`. By UPDATE with the lab's own key, so what DNS itself forbids stays undone."""
        order = parse(op, arguments, self.origin)
        update = dns.update.UpdateMessage(self.origin, keyring=self._key)
        if order.op == "delete":
            present, gone = ((order.name,), (order.name,)) if order.rtype is None else ((order.name, order.rtype), (order.name, order.rtype))
            update.present(*present)
            update.delete(*gone)
        else:
            (update.replace if order.op == "replace" else update.add)(order.name, order.rdataset(self.origin))
        try:
            answer = await dns.asyncquery.tcp(update, self._relay.upstream[0], CALL_S, self._relay.upstream[1])
        except (OSError, EOFError, dns.exception.DNSException) as error:
            raise PartError(f"Knot does not answer: {error or type(error).__name__}") from error
        if answer.rcode() in (dns.rcode.NXRRSET, dns.rcode.NXDOMAIN):
            raise PartError(f"name: {order.name} has no such record")
        if answer.rcode() != dns.rcode.NOERROR:
            raise PartError(f"Knot refuses it: {dns.rcode.to_text(answer.rcode())}")
        return {"name": self._plain(order.name), "serial": (await asyncio.to_thread(self.inspect))["serial"]}

    def _plain(self, name: dns.name.Name) -> str:
        return name.to_text(omit_final_dot=True)


def clean(directory: Path) -> list[str]:
    """Ends every Knot that a lab ever started with this directory's configuration; says which. Harmless twice. Files stay."""
    ended = []
    config = str(directory.resolve() / "knot.conf").encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if _kill(int(entry.name), config):
                ended.append(f"knotd {entry.name}")
    return ended


def _kill(pid: int, config: bytes) -> bool:
    """Whether it was one. By a descriptor, so that no other process of that number is meant; returns when it is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if config not in argv or not any(part.endswith(b"knotd") for part in argv[:4]):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                break
            if state == "Z":
                break
            time.sleep(0.02)
        return True
    finally:
        os.close(descriptor)


def _put(path: Path, text: str) -> None:
    """Whole or not at all, 0600."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
