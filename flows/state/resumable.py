"""DDL that may run twice, for MariaDB, which commits each such statement at once: an upgrade that was killed is ended by the next run.

Every migration may therefore be written plainly, as long as it first changes tables and then rows: rows commit together with the revision.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Engine, event

_NAME = r"(?:`[^`]+`|\w+)"
_IF_NEW, _IF_THERE = r"\1IF NOT EXISTS ", r"\1IF EXISTS "
_RULES = tuple(
    (re.compile(rf"^(\s*{pattern} )(?!IF )", re.IGNORECASE), instead)
    for pattern, instead in (
        (r"CREATE TABLE", _IF_NEW),
        (r"CREATE (?:UNIQUE )?INDEX", _IF_NEW),
        (r"CREATE TRIGGER", _IF_NEW),
        (rf"ALTER TABLE {_NAME} ADD (?:COLUMN|INDEX|UNIQUE INDEX|CONSTRAINT)", _IF_NEW),
        (r"DROP (?:TABLE|INDEX|TRIGGER)", _IF_THERE),
        (rf"ALTER TABLE {_NAME} DROP (?:COLUMN|INDEX|CONSTRAINT|FOREIGN KEY)", _IF_THERE),
    )
)


def repeatable(statement: str) -> str:
    """The statement, so that it does nothing where its work is done already."""
    for pattern, instead in _RULES:
        statement, changed = pattern.subn(instead, statement, count=1)
        if changed:
            break
    return statement


def prepare(engine: Engine) -> None:
    """Makes all DDL of a MariaDB engine repeatable; nothing to do for the others, which change everything or nothing."""
    if engine.dialect.name == "mysql":
        event.listen(engine, "before_cursor_execute", _rewrite, retval=True)


def _rewrite(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> tuple[str, Any]:
    return repeatable(statement), parameters
