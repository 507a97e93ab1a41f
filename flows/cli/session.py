"""What a command that reads or writes the database needs: settings, a database, and the name of who is asking."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from flows.settings import Settings, load
from flows.state.database import Database, Tx

T = TypeVar("T")

#: Where ``zlh up`` leaves its settings; used when nothing else is configured, so that a second terminal just works.
LOCAL_ENV = Path("var/up/zlh.env")


def settings() -> Settings:
    """From the environment; from ``zlh up`` in this directory where there is none."""
    configured = any(key.startswith("ZLH_") for key in os.environ)
    if not configured and LOCAL_ENV.exists():
        return load({"ZLH_ENV_FILE": str(LOCAL_ENV)})
    return load()


def actor() -> str:
    """Who types: every audit line names one."""
    return f"cli:{os.environ.get('SUDO_USER') or getpass.getuser()}"[:64]


def _open(chosen: Settings) -> Database:
    group = chosen.database
    return Database(group.url.get_secret_value(), busy_timeout_s=group.busy_timeout_s, pool_size=group.pool_size)


def read(look: Callable[[Tx], Awaitable[T]]) -> T:
    """Runs ``look`` in one reading transaction."""

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

    async def run() -> T:
        database = _open(settings())
        try:
            async with database.write() as tx:
                return await change(tx)
        finally:
            await database.close()

    return asyncio.run(run())
