"""A database under virtual time, a notifier that does what it is told, and settings that hurry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from flows.settings import Settings
from flows.state.database import Database
from tests.unit.report.support import Clock, FakeNotifier, Rows, create_schema


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notifier() -> FakeNotifier:
    return FakeNotifier()


@pytest.fixture
async def open_db(tmp_path: Path, clock: Clock) -> AsyncIterator[Callable[..., Database]]:
    opened: list[Database] = []

    def open_(**options: Any) -> Database:
        opened.append(Database(f"sqlite+aiosqlite:///{tmp_path / 'zlh.db'}", clock=clock, **options))
        return opened[-1]

    yield open_
    for database in opened:
        await database.close()


@pytest.fixture
async def db(open_db: Callable[..., Database]) -> Database:
    database = open_db()
    await create_schema(database)
    return database


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {
            "notify": {"timeout_s": 0.2, "drain_s": 0.05},
            "engine": {"timeout_s": 0.2},
            "timing": {"submit_s": 0.02},
            "watchdog": {"state_file": str(tmp_path / "state" / "watchdog.json")},
        }
    )


@pytest.fixture
def rows() -> Rows:
    return Rows()
