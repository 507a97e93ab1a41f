"""RFC 9457 problem documents: every answer that is not a success. Used by ``routes`` and ``bearer``."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **extra: object) -> JSONResponse:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **extra}
    return JSONResponse(body, status, headers, "application/problem+json")


class Refused(Exception):
    """Carries an answer out of a handler's depths."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **extra: object) -> None:
        super().__init__(detail)
        self.response = problem(status, detail, headers=headers, **extra)
