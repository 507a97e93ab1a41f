"""The optional heartbeat to a dead man's switch outside: silence there means that nobody sweeps here. Called after finished sweeps."""

from __future__ import annotations

import httpx

from flows.errors import MisconfiguredSetting, Unreachable

_SETTING = "ZLH_DEADMAN__URL"


async def beat(url: str, timeout_s: float = 5.0) -> None:
    """One GET. Raises Unreachable without a good answer, MisconfiguredSetting where the URL is none; neither repeats the URL, which is
    as good as a password."""
    try:
        async with httpx.AsyncClient(timeout=timeout_s, follow_redirects=True) as client:
            response = await client.get(url)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise MisconfiguredSetting(_SETTING, why=f"is no URL: {type(error).__name__}", remedy="set it like https://host/path") from None
    except httpx.HTTPError as error:
        raise Unreachable("heartbeat", why=type(error).__name__, remedy=f"check {_SETTING}") from None
    if response.is_error:
        raise Unreachable("heartbeat", why=f"status {response.status_code}", remedy=f"check {_SETTING}")
