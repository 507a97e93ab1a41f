"""Statements that were built once, executed without SQLAlchemy's own way from a statement to a cursor: what the simulator spends most on.

SQLAlchemy compiles, types and reads as ever; only what is the same at every execution is done once. A statement's first execution, and
whatever this does not know (defaults that are functions, lists that come as parameters), go SQLAlchemy's way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_NONE: dict[str, Any] = {}
#: The parameter has no value of its own: the caller must give one.
_REQUIRED = object()


class Answer(IteratorResult[Any]):
    """The rows of a statement, and how many it wrote."""

    def __init__(self, metadata: SimpleResultMetaData, rows: Sequence[Any], rowcount: int) -> None:
        super().__init__(metadata, iter(rows))
        self.rowcount = rowcount


class Prepared:
    """A statement as SQLite takes it. ``usable``: whether this knows everything about it."""

    def __init__(self, statement: Any, dialect: Dialect, keys: tuple[str, ...], *, many: bool) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(keys) or None, for_executemany=many)
        columns = compiled._result_columns
        names = [column.keyname for column in columns]
        prefetch = compiled.prefetch
        self.usable = bool(
            all(c.default is not None and c.default.is_scalar for c in prefetch)
            and len(set(names)) == len(names)
            and not (many and columns)
            and not compiled.effective_returning
        )
        if not self.usable:
            return
        expanded = compiled.construct_expanded_state(dict.fromkeys(keys))  # lists of a statement's own become so many parameters
        self.sql = expanded.statement
        values = {**expanded.parameters, **{c.key: c.default.arg for c in prefetch}}
        processors = {**compiled._bind_processors, **expanded.processors}
        self._takes = []
        for name in expanded.positiontup or ():
            value = _REQUIRED if name in keys else values[name]
            process = processors.get(name)
            if value is not _REQUIRED and process is not None:
                value = process(value)
            self._takes.append((name, value, process))
        reads = [column.type._cached_result_processor(dialect, None) for column in columns]
        self._metadata = SimpleResultMetaData(names, extra=[tuple(column.objects) for column in columns], _processors=reads)

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """Raises KeyError for a parameter that nobody gave."""
        return [
            value if value is not _REQUIRED else (given[name] if process is None else process(given[name])) for name, value, process in self._takes
        ]

    def answer(self, cursor: sqlite3.Cursor) -> Answer:
        return Answer(self._metadata, cursor.fetchall() if cursor.description is not None else (), cursor.rowcount)


class Statements:
    """What is prepared of each statement that came more than once, for as long as the statement lives."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._seen: WeakKeyDictionary[Any, dict[Any, Prepared | None]] = WeakKeyDictionary()

    def prepared(self, statement: Any, parameters: Parameters) -> Prepared | None:
        """None: it is SQLAlchemy's to execute."""
        known = self._seen.get(statement)
        if known is None:
            self._seen[statement] = {}
            return None
        many = isinstance(parameters, list)
        first: Mapping[str, Any] = (parameters[0] if many else parameters) or _NONE  # type: ignore[index,assignment]  # by its kind
        key = (many, *first)
        try:
            return known[key]
        except KeyError:
            known[key] = found = self._prepare(statement, tuple(first), many=many)
            return found

    def _prepare(self, statement: Any, keys: tuple[str, ...], *, many: bool) -> Prepared | None:
        try:
            found = Prepared(statement, self._dialect, keys, many=many)
        except (SQLAlchemyError, TypeError):  # a list that comes as a parameter, for one
            return None
        return found if found.usable else None

    def execute(
        self, prepared: Prepared, parameters: Any, run: Callable[[str, Any], sqlite3.Cursor], run_many: Callable[[str, Any], sqlite3.Cursor]
    ) -> Answer:
        """Raises what SQLAlchemy would raise."""
        try:
            if isinstance(parameters, list):
                return prepared.answer(run_many(prepared.sql, [prepared.values(row) for row in parameters]))
            return prepared.answer(run(prepared.sql, prepared.values(parameters or _NONE)))
        except sqlite3.Error as error:
            wrapped = DBAPIError.instance(prepared.sql, parameters, error, sqlite3.Error, dialect=self._dialect)
            raise wrapped from error
