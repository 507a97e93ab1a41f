"""One HTTPS call to Proxmox through proxmoxer, in a thread. Used by :mod:`client` and :mod:`tasks`.

Promises: no call outlasts ``timeout_s``, none *begins* in a thread so late that it could; the certificate is verified against our CA,
or is the very one whose fingerprint we hold;
no redirect, proxy or environment variable has a say; an answer has a largest size; every failure is one of :mod:`flows.errors` and
carries no secret. A GET is repeated on :class:`Unreachable`; nothing else ever is.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
import stamina
import urllib3
from proxmoxer.backends.https import Backend
from proxmoxer.core import ProxmoxResource, ResourceException

from flows.clients.http import fit, literal_host
from flows.clients.proxmox.errors import translate
from flows.errors import AmbiguousEffect, BadAnswer, Busy, MisconfiguredSetting, Unreachable
from flows.settings import ProxmoxSettings

#: Largest answer: ten thousand containers need about 6 MB.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
#: Calls under way at once.
THREADS = 8


class _TooLarge(Exception):
    """An answer beyond :data:`MAX_ANSWER_BYTES`."""


class _Pinned(requests.adapters.HTTPAdapter):
    """Talks to whoever shows the certificate with this SHA-256, and to nobody else; urllib3 compares before anything is sent."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, assert_fingerprint=self._fingerprint)


class Session:
    """``get`` and its siblings return the answer's ``data``. Every error names ``what`` was attempted."""

    def __init__(self, settings: ProxmoxSettings, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        literal_host("ZLH_PROXMOX__HOST", settings.host, 8006)
        self._settings = settings
        self._secret = settings.token.get_secret_value()
        self._max = max_answer_bytes
        self._connect_s = min(5.0, settings.timeout_s / 2)
        self._executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="proxmox")
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._closed = False

    @property
    def token_id(self) -> str:
        """``user@realm!name``: who we are in UPIDs and messages. No secret."""
        return f"{self._settings.user}!{self._settings.token_name}"

    async def get(self, what: str, path: str, **params: Any) -> Any:
        """Raises Unreachable where no answer came after three attempts within the time-out."""
        budget = self._settings.timeout_s
        ends = time.monotonic() + budget
        last: Unreachable | None = None
        async for attempt in stamina.retry_context(on=Unreachable, attempts=3, timeout=budget, wait_initial=0.1, wait_max=1.0):
            with attempt:
                if last is not None and time.monotonic() > ends - self._connect_s:
                    raise last  # it is too late to ask again
                try:
                    return await self._call(what, "get", path, params, write=False, left=ends - time.monotonic())
                except Unreachable as error:
                    last = error
                    raise
        raise AssertionError("stamina returns or raises")

    async def get_once(self, what: str, path: str, **params: Any) -> Any:
        """A read that its caller repeats itself."""
        return await self._call(what, "get", path, params, write=False, left=self._settings.timeout_s)

    async def post(self, what: str, path: str, **data: Any) -> Any:
        """Raises AmbiguousEffect where the answer was lost, or is no answer at all."""
        return await self._call(what, "post", path, data, write=True, left=self._settings.timeout_s)

    async def put(self, what: str, path: str, **data: Any) -> Any:
        return await self._call(what, "put", path, data, write=True, left=self._settings.timeout_s)

    async def delete(self, what: str, path: str, **params: Any) -> Any:
        return await self._call(what, "delete", path, params, write=True, left=self._settings.timeout_s)

    async def close(self) -> None:
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        for session in self._sessions:
            session.close()

    async def _call(self, what: str, method: str, path: str, values: dict[str, Any], *, write: bool, left: float) -> Any:
        what = f"Proxmox: {what}"
        if not self._secret:
            raise MisconfiguredSetting("ZLH_PROXMOX__TOKEN", why="is empty", remedy=f"set it to the secret of the API token {self.token_id}")
        if self._closed:
            raise Unreachable(what, why="the client is closed")
        sent = threading.Event()
        ends = time.monotonic() + left
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._blocking, what, method, path, values, write, ends, sent)
        try:
            async with asyncio.timeout(left):
                return await future
        except TimeoutError as error:
            if write and sent.is_set():
                raise AmbiguousEffect(what, why=f"no answer within {left:.0f} s", remedy="look at the object before acting again") from error
            raise Unreachable(what, why=f"no answer within {left:.0f} s", remedy="check ZLH_PROXMOX__HOST and the node") from error

    def _blocking(self, what: str, method: str, path: str, values: dict[str, Any], write: bool, ends: float, sent: threading.Event) -> Any:
        """Runs in a thread."""
        if time.monotonic() > ends - self._connect_s:
            raise Busy(what, why="no thread was free in time; nothing was sent")
        self._local.ends = ends
        resource = self._resource(what)
        sent.set()
        try:
            data = getattr(resource(path), method)(**values)
        except ResourceException as error:
            raise translate(error, what, write=write, token=self.token_id) from error
        except requests.exceptions.SSLError as error:
            raise self._tls(what, error, write) from error
        except requests.exceptions.TooManyRedirects as error:
            raise MisconfiguredSetting("ZLH_PROXMOX__HOST", why=f"{what}: it redirects elsewhere", remedy="name the API itself") from error
        except requests.exceptions.ConnectTimeout as error:
            raise Unreachable(what, why="no connection in time", remedy="check ZLH_PROXMOX__HOST and the node") from error
        except (requests.exceptions.RequestException, OSError) as error:
            raise self._no_answer(what, error, write) from error
        except (_TooLarge, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = f"the answer is larger than {self._max} bytes" if isinstance(error, _TooLarge) else "the answer is not the API's JSON"
            raise self._malformed(what, why, write) from error
        if isinstance(data, dict) and isinstance(data.get("errors"), bytes):  # proxmoxer's way to say that a 200 was no JSON
            raise self._malformed(what, "the answer is not the API's JSON", write)
        return data

    def _malformed(self, what: str, why: str, write: bool) -> Exception:
        if write:
            return AmbiguousEffect(what, why=why, remedy="look at the object before acting again")
        return BadAnswer(what, why=why, remedy="check that ZLH_PROXMOX__HOST names a Proxmox node and no proxy in front of it")

    def _no_answer(self, what: str, error: Exception, write: bool) -> Exception:
        """Refused before anything was sent is harmless; anything later may have happened."""
        chain: list[str] = []
        cause: BaseException | None = error
        while cause is not None and len(chain) < 8:
            chain.append(type(cause).__name__)
            cause = cause.__context__ or cause.__cause__
        unsent = "NewConnectionError" in chain or "ConnectionRefusedError" in chain
        why = fit("connection refused" if "ConnectionRefusedError" in chain else f"no answer ({type(error).__name__})")
        if write and not unsent:
            return AmbiguousEffect(what, why=why, remedy="look at the object before acting again")
        return Unreachable(what, why=why, remedy="check ZLH_PROXMOX__HOST and the node")

    def _tls(self, what: str, error: Exception, write: bool) -> Exception:
        """A refused certificate is a refusal before anything was sent; other TLS errors may come at any time."""
        text = str(error)
        if "Fingerprints did not match" in text:
            return MisconfiguredSetting(
                "ZLH_PROXMOX__FINGERPRINT",
                why=f"{what}: {self._settings.host} shows another certificate",
                remedy="compare with `pvenode cert info` on the node itself: it changes when the certificate is renewed",
            )
        if "CERTIFICATE_VERIFY_FAILED" not in text and "certificate verify failed" not in text:
            if write:
                return AmbiguousEffect(what, why="the TLS connection broke", remedy="look at the object before acting again")
            return Unreachable(what, why="TLS failed", remedy="check that ZLH_PROXMOX__HOST is the API's port")
        reason = text.rsplit("certificate verify failed:", 1)[-1].split("(_ssl", 1)[0]
        return MisconfiguredSetting(
            "ZLH_PROXMOX__CA_FILE",
            why=f"{what}: the certificate of {self._settings.host} is not trusted: {fit(reason)}",
            remedy="set it to the CA of that node (/etc/pve/pve-root-ca.pem); the certificate must name the address in ZLH_PROXMOX__HOST",
        )

    def _resource(self, what: str) -> ProxmoxResource:
        """This thread's own: proxmoxer and requests do not promise more."""
        existing = getattr(self._local, "resource", None)
        if existing is not None:
            return existing
        settings = self._settings
        verify: bool | str = True
        if settings.ca_file is not None:
            try:
                ssl.create_default_context(cafile=str(settings.ca_file))
            except (OSError, ssl.SSLError) as error:
                raise MisconfiguredSetting(
                    "ZLH_PROXMOX__CA_FILE", why=f"{settings.ca_file}: {type(error).__name__}", remedy="name a readable PEM file with the CA"
                ) from error
            verify = str(settings.ca_file)
        elif settings.fingerprint:
            verify = False  # no CA has a say: _Pinned compares the certificate itself
        backend = Backend(
            settings.host,
            user=settings.user,
            token_name=settings.token_name,
            token_value=self._secret,
            verify_ssl=verify,
            timeout=(self._connect_s, settings.timeout_s),
        )
        session = backend.get_session()
        session.trust_env = False
        session.max_redirects = 0
        if settings.fingerprint:
            session.mount("https://", _Pinned(settings.fingerprint))
        session.hooks["response"].append(self._capped(self._local))
        self._sessions.append(session)
        self._local.resource = ProxmoxResource(base_url=backend.get_base_url(), session=session, serializer=backend.get_serializer())
        return self._local.resource

    def _capped(self, local: threading.local) -> Callable[..., None]:
        """Reads the body before requests does: with a largest size and the call's deadline; puts an error's message into its phrase."""

        def chunk(response: requests.Response) -> bytes:
            try:
                return bytes(response.raw.read1(65_536, decode_content=True))
            except urllib3.exceptions.HTTPError as error:
                raise requests.exceptions.ConnectionError("the answer broke off") from error

        def read(response: requests.Response, **_: object) -> None:
            parts: list[bytes] = []
            size = 0
            while part := chunk(response):
                size += len(part)
                if size > self._max:
                    response.raw.close()
                    raise _TooLarge
                if time.monotonic() > local.ends:
                    response.raw.close()
                    raise requests.exceptions.ReadTimeout("the answer took too long")
                parts.append(part)
            body = b"".join(parts)
            if response.status_code >= 400:
                response.reason, body = self._message(response.reason or "", body)
            response.raw.release_conn()
            response.raw = io.BytesIO(body)

        return read

    def _message(self, phrase: str, body: bytes) -> tuple[str, bytes]:
        """The fuller of phrase and body's message, and the body with nothing but ``errors`` in it."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        answer = answer if isinstance(answer, dict) else {}
        message = fit(answer.get("message") or "", self._secret)
        phrase = fit(phrase, self._secret)
        errors = answer.get("errors")
        kept = {str(k): fit(v, self._secret) for k, v in errors.items()} if isinstance(errors, dict) else None
        return (message if len(message) > len(phrase) else phrase), json.dumps({"data": None, "errors": kept}).encode()
