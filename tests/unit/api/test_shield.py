"""What stands before the routes: rates, sizes, tokens; and that no error says more than it should."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.api import limits, problems, token_cache
from flows.api.app import control_app, public_app
from flows.api.limits import SlidingWindow
from flows.api.token_cache import TokenCache
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadAnswer,
    Busy,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    MisconfiguredSetting,
    NotFound,
    Unauthorized,
    Unreachable,
)
from flows.settings import Settings
from flows.state import tokens
from flows.state.database import Database
from tests.support.house import CONTROL_TOKEN, House, build, new_settings, order


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- rates


def test_a_window_admits_its_limit_and_says_when_to_come_back() -> None:
    clock = Clock()
    window = SlidingWindow(3, 60.0, clock)
    assert [window.retry_after("a") for _ in range(3)] == [None] * 3
    wait = window.retry_after("a")
    assert wait is not None and 0 < wait <= 80
    assert window.retry_after("b") is None  # somebody else's account
    clock.now += wait + 0.001
    assert window.retry_after("a") is None


def test_the_window_slides_a_burst_at_its_end_still_counts_in_the_next_one() -> None:
    clock = Clock()
    clock.now = 60 * 20 - 1.0
    window = SlidingWindow(100, 60.0, clock)
    assert [window.retry_after("a") for _ in range(100)] == [None] * 100
    clock.now += 2.0  # one second into the next fixed minute: 59/60 of the burst still count
    admitted = sum(window.retry_after("a") is None for _ in range(100))
    assert admitted in (1, 2)
    clock.now += 29.0  # half of it
    assert sum(window.retry_after("a") is None for _ in range(100)) in range(47, 52)


@given(st.integers(1, 20), st.lists(st.floats(0, 40), min_size=1, max_size=120))
def test_no_window_of_a_minute_holds_twice_the_limit_and_waiting_helps(limit: int, gaps: list[float]) -> None:
    clock = Clock()
    window = SlidingWindow(limit, 60.0, clock)
    admitted: list[float] = []
    for gap in gaps:
        clock.now += gap
        wait = window.retry_after("a")
        if wait is None:
            admitted.append(clock.now)
        else:
            assert 0 < wait <= 121
            clock.now += wait + 0.01
            assert window.retry_after("a") is None
            admitted.append(clock.now)
    for end in admitted:
        assert sum(end - 60 < at <= end for at in admitted) < 2 * limit + 1
    assert sum(at < admitted[0] + 60 - admitted[0] % 60 for at in admitted) <= limit  # within one fixed minute, never more than the limit


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 10)
    window = SlidingWindow(1, 60.0, Clock())
    for i in range(100):
        window.retry_after(f"address:{i}")
    assert len(window._counts) == 10


@pytest.fixture
async def narrow(database: Database) -> AsyncIterator[House]:
    async with build(database, new_settings(requests_per_minute=2, trusted_proxies=("127.0.0.1", "10.0.0.1"))) as house:
        yield house


async def test_addresses_behind_a_trusted_proxy_are_told_apart(narrow: House) -> None:
    async def ask(forwarded: str) -> int:
        return (await narrow.public.get("/healthz", headers={"X-Forwarded-For": forwarded})).status_code

    assert [await ask("192.0.2.1") for _ in range(3)] == [200, 200, 429]
    assert await ask("192.0.2.2") == 200
    # A client may write into the header what it likes: the proxies append, so the last foreign address counts.
    assert await ask("198.51.100.9, 192.0.2.1") == 429
    assert await ask("192.0.2.1, 10.0.0.1") == 429


async def test_nobody_else_is_believed_about_addresses(database: Database) -> None:
    async with build(database, new_settings(requests_per_minute=2)) as house:
        answers = [await house.public.get("/healthz", headers={"X-Forwarded-For": f"192.0.2.{i}"}) for i in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]


async def test_the_bridge_always_gets_its_answer(narrow: House) -> None:
    headers = {"Authorization": f"Bearer {CONTROL_TOKEN}"}
    assert {(await narrow.control.get("/internal/proxy/backends", headers=headers)).status_code for _ in range(10)} == {200}


# --- sizes


async def test_a_body_without_a_declared_size_is_cut_off(house: House) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b" " * 8192

    answer = await house.public.post("/api/servers/create", content=endless(), headers=house.alice.headers())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert sent < 12  # 64 KiB, not all of it


async def test_a_chunked_order_is_an_order(house: House) -> None:
    async def parts() -> AsyncIterator[bytes]:
        text = httpx.Request("POST", "http://x", json=order()).content
        yield text[:40]
        yield text[40:]

    headers = house.alice.headers(**{"Content-Type": "application/json"})
    assert (await house.public.post("/api/servers/create", content=parts(), headers=headers)).status_code == 202


# --- tokens


async def test_a_revocation_is_felt_within_the_cache(house: House) -> None:
    assert token_cache.CACHE_S <= 5
    clock = Clock()
    cache = TokenCache(house.database, 2.0, clock)
    async with house.database.write() as tx:
        token_id, plaintext = await tokens.create(tx, customer_id=house.alice.customer_id, role="customer", label="x")
    assert await cache.caller(plaintext) is not None
    async with house.database.write() as tx:
        await tokens.revoke(tx, token_id)
    clock.now += 1.9
    assert await cache.caller(plaintext) is not None
    clock.now += 0.2
    assert await cache.caller(plaintext) is None


async def test_a_bad_token_is_never_remembered_and_the_cache_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "_CACHED_TOKENS", 2)
    cache = TokenCache(house.database)
    assert await cache.caller("zlh_nobody") is None
    for lane in (house.alice, house.bob, house.admin):
        assert await cache.caller(lane.token) is not None
    assert len(cache._known) == 2


async def test_the_cache_holds_no_token(house: House) -> None:
    await house.alice.get("/api/servers")
    assert house.alice.token not in repr(vars(house.deps.tokens))


# --- problems


def test_the_documented_list_of_problems_is_the_list() -> None:
    documented = {line.split("``")[1]: int(line.split("``")[2].split()[0]) for line in (problems.__doc__ or "").splitlines() if line.startswith("``")}
    assert documented == {name: status for name, (status, _) in problems.TITLES.items()}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("x"), 404),
        (Conflict("x", kind="something new"), 409),
        (Conflict("x"), 409),
        (Busy("x", retry_after=7), 503),
        (Unreachable("database at 10.0.0.5"), 503),
        (AmbiguousEffect("x"), 503),
        (DeadlineExceeded("x"), 504),
        (Unauthorized("agent"), 502),
        (Forbidden("x"), 502),
        (BadAnswer("x"), 502),
        (MisconfiguredSetting("ZLH_DATABASE__URL"), 500),
        (AutomationError("x"), 500),
    ],
)
async def test_errors_by_meaning_and_without_their_insides(house: House, error: AutomationError, status: int) -> None:
    app = public_app(house.deps)

    async def broken() -> None:
        raise error

    app.add_api_route("/broken", broken)
    answer = await get(app, "/broken")
    assert answer.status_code == status and set(answer.json()) == {"type", "title", "status"}
    assert "10.0.0.5" not in answer.text and "ZLH" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_what_nobody_expected_is_500_and_says_nothing(house: House) -> None:
    app = control_app(house.deps)

    async def broken() -> None:
        raise RuntimeError("secret-in-a-message")

    app.add_api_route("/broken", broken)
    answer = await get(app, "/broken")
    assert (answer.status_code, answer.json()) == (500, {"type": "urn:zlh:problem:internal", "title": "Internal error", "status": 500})


async def test_no_refusal_repeats_what_was_sent(house: House) -> None:
    answer = await house.alice.post("/api/servers/create", order(name="My-Secret-Name", version="a secret"))
    assert answer.status_code == 422 and "ecret" not in answer.text


async def get(app: Any, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test") as client:
        return await client.get(path)


def test_settings_of_the_shield_have_safe_defaults() -> None:
    api = Settings().api
    assert (api.control_token.get_secret_value(), api.trusted_proxies, api.max_body_bytes) == ("", (), 65_536)
