"""What the front door's refusals mean to the command line: an error by meaning, and a next step for each."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from flows.api.problems import PREFIX, TITLES, invalid
from flows.clients import own_api
from flows.errors import AutomationError, BadAnswer, BadInput, Conflict, Forbidden, MisconfiguredSetting, NotFound, RateLimited, Unreachable
from flows.settings import ApiSettings

SETTINGS = ApiSettings(admin_token=SecretStr("zlh_secret"))


def refused(status: int, document: dict[str, Any], headers: dict[str, str] | None = None, **how: Any) -> AutomationError:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json=document, headers=headers))
    with pytest.raises(AutomationError) as caught:
        own_api.call(SETTINGS, "POST", "/api/servers/create", transport=transport, **how)
    return caught.value


def test_too_many_requests_say_how_long_to_wait() -> None:
    error = refused(429, {"type": f"{PREFIX}rate_limited", "title": "Too many requests"}, {"Retry-After": "7"})
    assert isinstance(error, RateLimited)
    assert (error.retry_after, error.remedy) == (7.0, "try again in 7 s")


def test_a_used_up_quota_is_no_rate_limit() -> None:
    error = refused(429, {"type": f"{PREFIX}quota", "detail": "quota: plan basic allows 1 servers"})
    assert isinstance(error, Conflict)
    assert (error.kind, error.why) == ("quota", "quota: plan basic allows 1 servers")


def test_a_wrong_field_is_named_as_the_user_knows_it() -> None:
    problem = invalid([("memory_mb", "is too small"), ("flavor", "is no flavor")])
    error = refused(422, problem.document(), body={"memory_mb": 1}, named={"memory_mb": "--memory", "flavor": "--flavor"})
    assert isinstance(error, BadInput)
    assert str(error) == "--memory: 1 is not valid · is too small; --flavor is no flavor · correct it and order again"


@pytest.mark.parametrize("name", sorted(TITLES))
def test_every_problem_has_a_next_step(name: str) -> None:
    status, title = TITLES[name]
    members = {"name": "fern", "operation_id": "0198", "errors": [{"field": "name", "detail": "x"}]}
    error = refused(status, {"type": PREFIX + name, "title": title, **members}, body={"name": "x"})
    assert error.remedy
    assert "{" not in error.remedy


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [(403, "forbidden", Forbidden), (404, "not_found", NotFound), (409, "name_taken", Conflict), (502, "bad_gateway", BadAnswer),
     (503, "unavailable", Unreachable), (503, "no_capacity", Conflict), (500, "internal", Unreachable)],
)  # fmt: skip
def test_errors_by_meaning(status: int, name: str, kind: type[AutomationError]) -> None:
    assert isinstance(refused(status, {"type": PREFIX + name}), kind)


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(200, json=[])])
def test_an_answer_of_somebody_else_is_not_believed(answer: httpx.Response) -> None:
    with pytest.raises(BadAnswer):
        own_api.call(SETTINGS, "GET", "/", transport=httpx.MockTransport(lambda request: answer))


def test_without_a_token_nothing_is_asked() -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_API__ADMIN_TOKEN"):
        own_api.call(ApiSettings(), "GET", "/")
