"""What a command that reads or writes the database needs: settings, a database, and the name of who is asking.

``rows`` is for listings, which must answer at once: it reads one setting and imports neither pydantic nor SQLAlchemy.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flows import environment
from flows.state import quick

if TYPE_CHECKING:
    from flows.settings import Settings
    from flows.state.database import Database, Tx

T = TypeVar("T")

#: Where ``zlh up`` leaves its settings; used when nothing else is configured, so that a second terminal just works.
LOCAL_ENV = Path("var/up/zlh.env")
_URL = "ZLH_DATABASE__URL"


def environ() -> Mapping[str, str]:
    """The environment; that of ``zlh up`` in this directory where nothing is configured."""
    configured = any(key.startswith("ZLH_") for key in os.environ)
    return {"ZLH_ENV_FILE": str(LOCAL_ENV)} if not configured and LOCAL_ENV.exists() else os.environ


def settings() -> Settings:
    """Every setting, checked. Raises MisconfiguredSetting."""
    from flows.settings import load

    return load(environ())


def database_url() -> str:
    """The database's URL, without the cost of all settings where it is plainly set. Raises MisconfiguredSetting."""
    values = environment.merged(environ())
    ours = {key for key in values if key.startswith("ZLH_DATABASE")}
    if ours <= {_URL, "ZLH_DATABASE__POOL_SIZE", "ZLH_DATABASE__BUSY_TIMEOUT_S"} and _URL in ours:
        return values[_URL]
    return settings().database.url.get_secret_value()


def actor() -> str:
    """Who types: every audit line names one."""
    return f"cli:{os.environ.get('SUDO_USER') or getpass.getuser()}"[:64]


def rows(make: Callable[[int], quick.Query]) -> tuple[quick.Rows, int]:
    """The rows of one query, and the database's time (ms)."""
    return quick.read(database_url(), make)


def read(look: Callable[[Tx], Awaitable[T]]) -> T:
    """Runs ``look`` in one reading transaction."""
    import asyncio

    async def run() -> T:
        database = _open(settings())
        try:
            async with database.read() as tx:
                return await look(tx)
        finally:
            await database.close()

    return asyncio.run(run())


def write(change: Callable[[Tx], Awaitable[T]]) -> T:
    """Runs ``change`` in one writing transaction."""
    import asyncio

    async def run() -> T:
        database = _open(settings())
        try:
            async with database.write() as tx:
                return await change(tx)
        finally:
            await database.close()

    return asyncio.run(run())


def _open(chosen: Settings) -> Database:
    from flows.state.database import Database

    group = chosen.database
    return Database(group.url.get_secret_value(), busy_timeout_s=group.busy_timeout_s, pool_size=group.pool_size)
