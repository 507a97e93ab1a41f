"""Tokens and tickets. A refusal comes before the API's own code: 401, late, with a reason phrase and no body."""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections.abc import Mapping
from urllib.parse import unquote

from flows.lab.config import ProxmoxConfig, TokenConfig
from flows.lab.proxmox.errors import PveError
from flows.lab.proxmox.rights import Identity

TICKET_LIFE_S = 7200
_SCHEME = "PVEAPIToken="


class Auth:
    """Knows every token and user of the configuration; tickets live in memory."""

    def __init__(self, config: ProxmoxConfig) -> None:
        self._delay_s = config.timings.refuse_s
        self._tokens: dict[str, TokenConfig] = {f"{t.user}!{t.name}": t for t in config.tokens}
        self._users = {u.user: u for u in config.users}
        self._tickets: dict[str, tuple[str, str, float]] = {}  # ticket → user, CSRF token, end

    def refuse(self, why: str) -> PveError:
        return PveError(401, why, bare=True, delay_s=self._delay_s)

    def identify(self, method: str, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Identity:
        """Raises PveError 401."""
        authorization = headers.get("Authorization", "")
        if authorization.startswith(_SCHEME):
            return self._by_token(authorization.removeprefix(_SCHEME))
        ticket = unquote(cookies.get("PVEAuthCookie", ""))
        if not ticket and authorization.startswith("PVEAuthCookie="):
            ticket = unquote(authorization.removeprefix("PVEAuthCookie="))
        if not ticket:
            raise self.refuse("No ticket")
        user, csrf, end = self._tickets.get(ticket, ("", "", 0.0))
        if not user or time.monotonic() >= end:
            raise self.refuse("permission denied - invalid PVE ticket")
        if method != "GET" and not hmac.compare_digest(headers.get("CSRFPreventionToken", "").encode(), csrf.encode()):
            raise self.refuse("Permission denied - invalid csrf token")
        return self._user(user)

    def _by_token(self, text: str) -> Identity:
        name, _, secret = text.partition("=")
        user, _, token_name = name.partition("!")
        token = self._tokens.get(name)
        if token is None:
            raise self.refuse(f"no such token '{token_name}' for user '{user}'")
        if token.expire and time.time() >= token.expire:
            raise self.refuse("token expired")
        if not hmac.compare_digest(secret.encode(), token.secret.get_secret_value().encode()):
            raise self.refuse("invalid token value!")
        return Identity(user, token_name, token.rights)

    def _user(self, user: str) -> Identity:
        return Identity(user, None, self._users[user].rights, root=user == "root@pam")

    def login(self, user: str, password: str) -> dict[str, object]:
        """A ticket and its CSRF token. A valid ticket is accepted as password, to renew it. Raises PveError 401."""
        known = self._users.get(user)
        owner, _, end = self._tickets.get(password, ("", "", 0.0))
        renewed = owner == user and time.monotonic() < end
        if known is None or not (renewed or hmac.compare_digest(password.encode(), known.password.get_secret_value().encode())):
            raise PveError(401, "authentication failure", delay_s=self._delay_s)
        stamp = f"{int(time.time()):08X}"
        ticket = f"PVE:{user}:{stamp}::{base64.b64encode(secrets.token_bytes(48)).decode()}"
        csrf = f"{stamp}:{secrets.token_urlsafe(32)}"
        self._tickets[ticket] = (user, csrf, time.monotonic() + TICKET_LIFE_S)
        return {"username": user, "ticket": ticket, "CSRFPreventionToken": csrf, "cap": {}}
