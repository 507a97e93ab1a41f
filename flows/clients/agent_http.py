"""One HTTP exchange with one agent, on pyreqwest: the transport that scales to a sweep of ten thousand. Used by :mod:`agents` alone.

Every exchange has a connection of its own, an own deadline that covers connecting and the whole body, and a largest answer. No redirect,
proxy, cookie, compression or environment variable has a say. The project's CA is trusted beside the system's: no public CA signs the
addresses that agents have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError, RequestTimeoutError

from flows.clients.ca import load_bundle
from flows.settings import AgentSettings


class Reply(NamedTuple):
    """``retry_after`` is the header as sent."""

    status: int
    body: bytes
    retry_after: str = ""


class Failure(Enum):
    """Why there is no reply."""

    UNSENT = "no connection"  # nothing reached the agent
    UNTRUSTED = "its certificate is not from our CA"  # nothing reached the agent
    SILENT = "no answer"  # the request may have arrived
    OVERSIZED = "its answer is larger than allowed"


#: Seconds for the library's thread to come to rest.
SETTLE_S = 0.1


@dataclass
class NoReply(Exception):
    """``why`` is for people; no secret in it."""

    failure: Failure
    why: str


class AgentHttp:
    """``fingerprint`` tells when the CA on disk changed and a new instance is due."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._client = self._build()

    def _build(self) -> Client:
        connect = timedelta(seconds=self._settings.timeout_s)
        builder = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(False)
            .referer(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .pool_max_idle_per_host(0)
            .connect_timeout(connect)
            .user_agent("zlh-autopilot")
            .default_headers({"Accept": "application/json", "Connection": "close"})
        )
        if self._settings.tls:
            builder = builder.https_only(True).tls_sni(False)
            for certificate in load_bundle(self._settings.ca_dir):
                builder = builder.add_root_certificate_der(certificate.public_bytes(Encoding.DER))
        return builder.build()

    async def exchange(self, method: str, url: str, token: str, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Raises NoReply."""
        request = self._client.request(method, url).bearer_auth(token).timeout(timedelta(seconds=timeout_s)).streamed_read_buffer_limit(65_536)
        for name, value in headers.items():
            request = request.header(name, value)
        limit = self._settings.max_answer_bytes
        try:
            async with request.build_streamed() as response:
                if int(response.get_header("content-length") or 0) > limit:
                    raise NoReply(Failure.OVERSIZED, f"more than {limit} bytes")
                parts = []
                size = 0
                while (part := await response.body_reader.read_chunk()) is not None:
                    size += len(part)
                    if size > limit:
                        raise NoReply(Failure.OVERSIZED, f"more than {limit} bytes")
                    parts.append(bytes(part))
                return Reply(response.status, b"".join(parts), response.get_header("retry-after") or "")
        except PyreqwestError as error:
            raise _no_reply(error, timeout_s) from error

    async def close(self) -> None:
        """Waits a moment after closing: the library's own thread still lets go of what it held, and if the interpreter ends meanwhile, the
        process aborts (2 of 40 sweeps over TLS did). It offers no way to wait for that thread."""
        await self._client.close()
        await asyncio.sleep(SETTLE_S)


def _no_reply(error: PyreqwestError, timeout_s: float) -> NoReply:
    """By hyper's and rustls's words: the classes tell a connection that broke after the request from one that never was no better."""
    details = getattr(error, "details", None)
    causes = " ".join(str(cause.get("message", "")) for cause in (details.get("causes") or [] if isinstance(details, dict) else []))
    if "client error (Connect)" in causes:
        if "certificate" in causes:
            return NoReply(Failure.UNTRUSTED, f"its certificate is not accepted: {causes.rsplit('certificate', 1)[-1].strip(': ')[:80]}")
        return NoReply(Failure.UNSENT, "connection refused" if "refused" in causes else "no connection")
    if isinstance(error, RequestTimeoutError):
        return NoReply(Failure.SILENT, f"no answer within {timeout_s:g} s")
    return NoReply(Failure.SILENT, "the connection broke")
