"""The webhook receiver over HTTP: Discord's answers, limits and refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from flows.lab.config import LabConfig
from flows.lab.discord import DiscordPart, start
from flows.lab.faults import Faults, Mode
from flows.lab.world import World

HOOKS = {"alerts-critical": "101/aaa", "audit-log": "102/bbb"}


@pytest.fixture
async def part(lab_config: Callable[..., LabConfig], world: World, faults: Faults) -> AsyncIterator[DiscordPart]:
    part = await start(lab_config(discord={"webhooks": HOOKS, "requests": 3, "window_s": 60}), world, faults)
    yield part
    await part.stop()


@pytest.fixture
async def http(part: DiscordPart) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=part.endpoints["webhooks"]) as client:
        yield client


async def test_a_message_is_kept_with_its_mentions(http: httpx.AsyncClient, part: DiscordPart) -> None:
    answer = await http.post("/101/aaa", json={"content": "help", "allowed_mentions": {"users": ["7"]}})
    assert answer.status_code == 204 and answer.content == b""
    assert answer.headers["X-RateLimit-Limit"] == "3" and answer.headers["X-RateLimit-Remaining"] == "2"
    kept = part.inspect()["channels"]
    assert [(m["content"], m["allowed_mentions"]) for m in kept["alerts-critical"]] == [("help", {"users": ["7"]})]
    assert kept["alerts-critical"][0]["time"] > 0 and kept["audit-log"] == []


async def test_wait_answers_with_the_message(http: httpx.AsyncClient) -> None:
    answer = await http.post("/102/bbb", params={"wait": "true"}, json={"content": "x"})
    assert answer.status_code == 200
    assert answer.json()["content"] == "x" and answer.json()["id"].isdigit() and answer.json()["channel_id"] == "audit-log"


async def test_multipart_with_payload_json(http: httpx.AsyncClient, part: DiscordPart) -> None:
    answer = await http.post("/101/aaa", data={"payload_json": '{"content": "form"}'}, files={"file": ("a.txt", b"a")})
    assert answer.status_code == 204
    assert part.inspect()["channels"]["alerts-critical"][0]["content"] == "form"


async def test_two_thousand_characters_and_not_one_more(http: httpx.AsyncClient, part: DiscordPart) -> None:
    assert (await http.post("/101/aaa", json={"content": "é" * 2000})).status_code == 204
    answer = await http.post("/101/aaa", json={"content": "é" * 2001})
    assert answer.status_code == 400
    assert answer.json()["code"] == 50035
    assert answer.json()["errors"]["content"]["_errors"][0]["code"] == "BASE_TYPE_MAX_LENGTH"
    assert len(part.inspect()["channels"]["alerts-critical"]) == 1


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({}, 50006),
        ({"content": "  "}, 50006),
        ({"content": 7}, 50035),
        ([1], 50035),
        ({"content": "x", "allowed_mentions": {"parse": ["friends"]}}, 50035),
        ({"content": "x", "allowed_mentions": {"parse": ["users"], "users": ["1"]}}, 50035),
        ({"content": "x", "allowed_mentions": []}, 50035),
        ({"content": "x", "embeds": [{}] * 11}, 50035),
    ],
)
async def test_what_discord_refuses(http: httpx.AsyncClient, part: DiscordPart, payload: Any, code: int) -> None:
    answer = await http.post("/101/aaa", json=payload)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert part.inspect()["channels"]["alerts-critical"] == []
    assert part.inspect()["refused"] == {"alerts-critical:400": 1}


async def test_broken_json(http: httpx.AsyncClient) -> None:
    answer = await http.post("/101/aaa", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, 50109)


async def test_unknown_webhooks_and_wrong_tokens(http: httpx.AsyncClient) -> None:
    unknown = await http.post("/999/aaa", json={"content": "x"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, 10015)
    wrong = await http.post("/101/bbb", json={"content": "x"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, 50027)
    assert (await http.get("/101/aaa")).json()["name"] == "alerts-critical"


async def test_the_limit_is_per_webhook_and_says_how_long(http: httpx.AsyncClient, part: DiscordPart) -> None:
    for _ in range(3):
        assert (await http.post("/101/aaa", json={"content": "x"})).status_code == 204
    limited = await http.post("/101/aaa", json={"content": "x"})
    assert limited.status_code == 429
    assert 1 <= int(limited.headers["Retry-After"]) <= 60
    assert 0 < limited.json()["retry_after"] <= 60 and limited.json()["global"] is False
    assert 0 < float(limited.headers["X-RateLimit-Reset-After"]) <= 60 and limited.headers["X-RateLimit-Remaining"] == "0"
    assert (await http.post("/102/bbb", json={"content": "x"})).status_code == 204
    assert len(part.inspect()["channels"]["alerts-critical"]) == 3


async def test_the_limit_passes(lab_config: Callable[..., LabConfig], world: World, faults: Faults, eventually: Any) -> None:
    part = await start(lab_config(discord={"webhooks": HOOKS, "requests": 1, "window_s": 0.1}), world, faults)
    try:
        async with httpx.AsyncClient(base_url=part.endpoints["webhooks"]) as http:

            async def through() -> bool:
                return (await http.post("/101/aaa", json={"content": "x"})).status_code == 204

            for _ in range(3):
                await eventually(through)
    finally:
        await part.stop()


async def test_down_and_lost_answers(http: httpx.AsyncClient, part: DiscordPart, faults: Faults) -> None:
    faults.arm("discord", Mode.UNREACHABLE, count=1)
    with pytest.raises(httpx.TransportError):
        await http.post("/101/aaa", json={"content": "never"})
    faults.arm("discord", Mode.LOSE_ANSWER, count=1)
    with pytest.raises(httpx.TransportError):
        await http.post("/101/aaa", json={"content": "arrived"})
    await part.restart()
    assert [m["content"] for m in part.inspect()["channels"]["alerts-critical"]] == ["arrived"]
