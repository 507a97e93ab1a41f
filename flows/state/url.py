"""The database's URL: one of three drivers. Read before anything heavy is imported, so that a wrong one is refused in words."""

from __future__ import annotations

from flows.errors import MisconfiguredSetting

SETTING = "ZLH_DATABASE__URL"
DRIVERS = ("sqlite+aiosqlite", "mysql+asyncmy", "postgresql+asyncpg")
FORM = "for example sqlite+aiosqlite:///var/zlh.db, mysql+asyncmy://USER:PASSWORD@HOST/zlh or postgresql+asyncpg://USER:PASSWORD@HOST/zlh"


def checked(url: str) -> str:
    """The URL itself. Raises MisconfiguredSetting, which never quotes more than the driver: the rest may be a password."""
    driver, separator, rest = url.partition("://")
    if not separator:
        raise MisconfiguredSetting(SETTING, why="is no URL of a database" if url.strip() else "is empty", remedy=FORM)
    if driver not in DRIVERS:
        raise MisconfiguredSetting(SETTING, why=f"{driver!r} is none of {', '.join(DRIVERS)}", remedy=FORM)
    if driver == DRIVERS[0] and rest.partition("?")[0] in ("", "/"):
        raise MisconfiguredSetting(SETTING, why="names no file", remedy=FORM)
    return url
