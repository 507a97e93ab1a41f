"""Each server's own agent token, derived: nothing to store, nothing to leak from a database. Used by the agent client and by ``bootstrap``.

HKDF-SHA256 (RFC 5869) over the master secret, with the server id and the token's version: who knows one server's token knows no other's.
"""

from __future__ import annotations

import base64
import hmac
from functools import lru_cache

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from flows.errors import BadInput, MisconfiguredSetting

SETTING = "ZLH_AGENT__MASTER_SECRET"
MIN_MASTER = 32
_SALT = b"zlh-agent-token-v1"


def agent_token(master: SecretStr, server_id: str, version: int) -> SecretStr:
    """43 URL-safe characters. Raises MisconfiguredSetting for a master shorter than 32 characters, BadInput for no id or version below 1."""
    key = master.get_secret_value()
    if len(key) < MIN_MASTER:
        raise MisconfiguredSetting(
            SETTING, why=f"has {len(key)} characters, at least {MIN_MASTER} are needed", remedy="set it to `openssl rand -base64 48`"
        )
    if not server_id or "\0" in server_id:
        raise BadInput("server_id", server_id, why="a token belongs to exactly one server")
    if version < 1:
        raise BadInput("token_version", version, why="versions begin at 1")
    return SecretStr(_derive(key, server_id, version))


@lru_cache(maxsize=32_768)
def _derive(key: str, server_id: str, version: int) -> str:
    """Cached: a sweep asks for every server's."""
    info = b"\0".join((server_id.encode(), str(version).encode()))
    raw = HKDF(SHA256(), 32, _SALT, info).derive(key.encode())
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def same(left: SecretStr, right: SecretStr) -> bool:
    """Compares two tokens in constant time."""
    return hmac.compare_digest(left.get_secret_value().encode(), right.get_secret_value().encode())
