"""Derived agent tokens."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from flows.clients.agent_token import agent_token, same
from flows.errors import BadInput, MisconfiguredSetting

MASTER = SecretStr("m" * 32)


def test_a_token_is_the_hkdf_of_server_and_version() -> None:
    """The derivation is a promise: another one would lock every deployed agent out."""
    raw = HKDF(SHA256(), 32, b"zlh-agent-token-v1", b"srv-1\x002").derive(b"m" * 32)
    assert agent_token(MASTER, "srv-1", 2).get_secret_value() == base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_each_server_version_and_master_has_its_own() -> None:
    made = {
        agent_token(master, server, version).get_secret_value()
        for master in (MASTER, SecretStr("n" * 32))
        for server in ("srv-1", "srv-11", "srv-2")
        for version in (1, 2, 11)
    }
    assert len(made) == 18
    assert agent_token(MASTER, "srv-1", 1) == agent_token(MASTER, "srv-1", 1)


def test_a_token_hides_in_texts() -> None:
    token = agent_token(MASTER, "srv-1", 1)
    assert token.get_secret_value() not in f"{token} {token!r}"


@pytest.mark.parametrize("master", ["", "short", "m" * 31])
def test_a_short_master_names_the_setting(master: str) -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_AGENT__MASTER_SECRET") as caught:
        agent_token(SecretStr(master), "srv-1", 1)
    assert not master or master not in str(caught.value)


@pytest.mark.parametrize(("server", "version"), [("", 1), ("a\0b", 1), ("srv-1", 0)])
def test_a_token_of_nobody_is_refused(server: str, version: int) -> None:
    with pytest.raises(BadInput):
        agent_token(MASTER, server, version)


def test_comparing_tokens() -> None:
    assert same(SecretStr("abc"), SecretStr("abc"))
    assert not same(SecretStr("abc"), SecretStr("abd"))
    assert not same(SecretStr("ä"), SecretStr("a"))
