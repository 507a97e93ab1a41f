"""A database URL that cannot be: refused in words, with the setting's name, and without the password."""

from __future__ import annotations

import pytest

from flows.errors import MisconfiguredSetting
from flows.state import quick
from flows.state.database import Database

WRONG = [
    "", " ", "garbage", "mysql://u:hush@h/zlh", "sqlite:///zlh.db", "sqlite+aiosqlite://", "sqlite+aiosqlite:///", "oracle+oracledb://u:hush@h/x",
    "postgresql+asyncpg://u:hush@h:port/x",
]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_a_database_that_cannot_be_is_a_setting_to_correct(url: str) -> None:
    for use in (Database, lambda wrong: quick.read(wrong, lambda now: quick.Query("SELECT 1", {}))):
        with pytest.raises(MisconfiguredSetting) as refused:
            use(url)  # type: ignore[operator]  # two callables of one shape
        assert (refused.value.what, "sqlite+aiosqlite:///" in refused.value.remedy) == ("ZLH_DATABASE__URL", True)
        assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///zlh.db", "mysql+asyncmy://u:p@h/zlh", "postgresql+asyncpg://u:p%40@h:5/zlh"])
def test_the_three_drivers_are_taken(url: str) -> None:
    assert Database(url).url.drivername == url.partition(":")[0]
