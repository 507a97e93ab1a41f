"""Vendors' database errors in our own terms. Used by :mod:`flows.state.database`.

A server's error is known by its number (MariaDB) or its SQLSTATE (PostgreSQL); SQLite has words alone. What is not known here is Temporary:
nothing was committed, and whoever reads it sees the vendor's words.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from flows.errors import BadInput, Busy, Conflict, Temporary, Unreachable

#: Two transactions got in each other's way and this one was given up, at once: it may simply run again.
_COLLISIONS: Collection[object] = frozenset({1020, 1213, "40001", "40P01"})
#: It waited for a lock as long as it may.
_WAITED: Collection[object] = frozenset({1205, "55P03"})
#: MariaDB's violated constraint, which its driver does not count among integrity errors.
_CONSTRAINTS: Collection[object] = frozenset({4025})
_BY_CODE: tuple[tuple[Collection[object], str], ...] = (
    (frozenset({1146, "42P01"}), "zlh migrate makes the tables; is ZLH_DATABASE__URL the right one?"),
    (frozenset({1021, 1026, 1030, 1114, 3675, "53100"}), "make room where the database keeps its files"),
    (frozenset({1290, 1792, 1836, "25006"}), "the database takes no writes: does ZLH_DATABASE__URL name a replica, or is its disk read-only?"),
    (frozenset({1040, 1203, 1226, "53300"}), "raise max_connections, or lower ZLH_DATABASE__POOL_SIZE"),
    (frozenset({1045, 1142, 1143, 1698, "28000", "28P01", "42501"}), "check user, password and rights: docs/databases.md has the grants"),
    (frozenset({1044, 1049, "3D000"}), "create the database and its grants, or correct ZLH_DATABASE__URL: docs/databases.md"),
    (frozenset({1969, "57014"}), "the database is overloaded, or something locks it: look at its processes"),
)
#: The server is ending, starting or has ended this connection: 1053, 1927 and PostgreSQL's classes.
_GONE: Collection[object] = frozenset({1053, 1927, 2006, 2013})
_GONE_CLASSES = ("08", "57P", "25P03", "53", "58", "XX")
_SQLITE = (
    ("no such table", _BY_CODE[0][1]),
    ("disk is full", _BY_CODE[1][1]),
    ("disk I/O error", "look at the disk of the database's file: is it full or failing?"),
    ("readonly database", "this user may not write the database's file or its directory, or the disk is read-only"),
    ("malformed", "restore the database's file from its backup"),
)
_REMEDY = "check ZLH_DATABASE__URL and the server"


def translated(error: BaseException) -> Exception:
    """Conflict for a violated constraint, BadInput for a value that does not fit, Busy where others were in the way, Unreachable where the
    database cannot be used at present, Temporary for anything else. In all cases the transaction is undone, unless the error came with
    the commit itself: then nobody knows."""
    orig = getattr(error, "orig", None) or error
    codes = _codes(orig)
    why = str(orig) or type(orig).__name__
    if isinstance(error, IntegrityError) or codes & set(_CONSTRAINTS):
        return Conflict("database", why=why)
    if codes & set(_COLLISIONS):
        return Busy("database", why=why, remedy="nothing was written: try again", retry_after=1.0)
    if codes & set(_WAITED):
        return Busy("database", why=why, remedy="nothing was written: try again; if it stays so, look who holds the lock", retry_after=1.0)
    if isinstance(error, DataError) or any(str(code).startswith("22") for code in codes if isinstance(code, str)):
        return BadInput("row", "(a value)", why=why, remedy="give a value that its column can hold")
    for among, remedy in _BY_CODE:
        if codes & set(among):
            return Unreachable("database", why=why, remedy=remedy)
    for words, remedy in _SQLITE:
        if words in why:
            return Unreachable("database", why=why, remedy=remedy)
    if isinstance(error, OperationalError | PoolTimeout | OSError) or getattr(error, "connection_invalidated", False) or _gone(codes):
        return Unreachable("database", why=why, remedy=_REMEDY)
    return Temporary("database", why=why, remedy="try again; if it stays so, this is a defect")


def collided(error: BaseException) -> bool:
    """Whether the database gave the transaction up for another's sake, so that it may run again at once."""
    return bool(_codes(getattr(error, "orig", None)) & set(_COLLISIONS))


def _codes(orig: Any) -> set[object]:
    """MariaDB's driver gives a number and a state, and only the number is exact."""
    return {code for code in (getattr(orig, "sqlstate", None), *getattr(orig, "args", ())[:1]) if isinstance(code, str | int)}


def _gone(codes: Collection[object]) -> bool:
    return any(code in _GONE or (isinstance(code, str) and len(code) == 5 and code.startswith(_GONE_CLASSES)) for code in codes)
