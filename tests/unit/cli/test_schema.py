"""No service works on tables of another version."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.cli.services import refuse_other_schema
from flows.errors import Conflict
from flows.settings import DatabaseSettings, Settings
from flows.state import migrate


def settings(url: str) -> Settings:
    return Settings(database=DatabaseSettings(url=SecretStr(url)))


def test_a_database_without_our_tables_is_refused_with_the_remedy(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/zlh.db"
    with pytest.raises(Conflict, match="zlh migrate"):
        asyncio.run(refuse_other_schema(settings(url)))
    migrate.upgrade_sync(url)
    asyncio.run(refuse_other_schema(settings(url)))


def test_a_database_that_does_not_answer_is_waited_for() -> None:
    asyncio.run(refuse_other_schema(settings("postgresql+asyncpg://zlh:zlh@127.0.0.1:1/zlh")))
