"""Turns a reader's call into Known or Unknown, within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from flows.domain.known import Known, Unknown
from flows.errors import AutomationError

T = TypeVar("T")


async def ask(call: Awaitable[T], limit_s: float) -> Known[T] | Unknown:
    """Known, or Unknown with the error's words; later than ``limit_s`` is Unknown too."""
    try:
        async with asyncio.timeout(limit_s):
            return Known(await call)
    except AutomationError as error:
        return Unknown(str(error))
    except TimeoutError:
        return Unknown(f"no full answer in {limit_s:g} s")
