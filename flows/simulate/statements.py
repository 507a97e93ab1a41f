"""Statements that were built once, executed without SQLAlchemy's own way from a statement to a cursor: what the simulator spends most on.

SQLAlchemy compiles, types and reads as ever; only what is the same at every execution is done once. A statement's first execution, and
whatever this does not know (defaults that are functions, for one), go SQLAlchemy's way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import JSON, Dialect
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.types import TypeEngine

#: The parameter has no value of its own: the caller must give one.
_REQUIRED = object()
_NONE: dict[str, Any] = {}


class Answer(IteratorResult[Any]):
    """The rows of a statement, and how many it wrote."""

    def __init__(self, metadata: SimpleResultMetaData, rows: Sequence[Any], rowcount: int) -> None:
        super().__init__(metadata, iter(rows))
        self.rowcount = rowcount


class Prepared:
    """A statement as SQLite takes it, for parameters of these names; ``sizes``: how long those are that are lists for an ``IN``."""

    def __init__(self, compiled: Any, dialect: Dialect, names: Sequence[str], sizes: Mapping[str, int]) -> None:
        given = {name: [None] * sizes[name] if name in sizes else None for name in names}
        expanded = compiled.construct_expanded_state(given)  # a list becomes so many parameters
        self._lists = [(name, expanded.parameter_expansion[name]) for name in sizes]
        asked = {name for name in names if name not in sizes} | {part for _, parts in self._lists for part in parts}
        values = {**expanded.parameters, **{column.key: column.default.arg for column in compiled.prefetch}}
        processors = {**compiled._bind_processors, **expanded.processors}
        self.sql: str = expanded.statement
        self._takes = []
        for name in expanded.positiontup or ():
            process = processors.get(name)
            value = _REQUIRED if name in asked else values[name] if process is None else process(values[name])
            self._takes.append((name, value, process))
        columns = compiled._result_columns
        reads = [_reader(column.type, dialect) for column in columns]
        self._metadata = SimpleResultMetaData([c.keyname for c in columns], extra=[tuple(c.objects) for c in columns], _processors=reads)

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """Raises KeyError for a parameter that nobody gave."""
        for name, parts in self._lists:
            given = {**given, **dict(zip(parts, given[name], strict=True))}
        return [
            value if value is not _REQUIRED else (given[name] if process is None else process(given[name])) for name, value, process in self._takes
        ]

    def answer(self, cursor: sqlite3.Cursor) -> Answer:
        return Answer(self._metadata, cursor.fetchall() if cursor.description is not None else (), cursor.rowcount)


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> Any:
    """What makes a value of what SQLite has. Most JSON of ours is empty, and parsed without a parser."""
    process = kind._cached_result_processor(dialect, None)
    if process is None or not isinstance(kind, JSON):
        return process
    parse = process

    def read(value: Any) -> Any:
        return [] if value == "[]" else {} if value == "{}" else parse(value)

    return read


class Statement:
    """All that is prepared of one statement, by its parameters' names and their lists' lengths. Each name's first execution compiles it."""

    def __init__(self, statement: Any, dialect: Dialect, first: Mapping[str, Any]) -> None:
        self._dialect = dialect
        asked = statement.compile(dialect=dialect, column_keys=list(first) or None).post_compile_params
        self._lists: tuple[str, ...] = tuple(sorted(bind.key for bind in asked if bind.value is None))
        self._known: dict[Any, Prepared | None] = {}

    def prepared(self, statement: Any, first: Mapping[str, Any], *, many: bool) -> Prepared | None:
        """None: it is SQLAlchemy's to execute. The statement is not kept: else it would live for ever."""
        key = (many, *first, *(len(first[name]) for name in self._lists))
        try:
            return self._known[key]
        except KeyError:
            found = self._known[key] = self._prepare(statement, first, many=many)
            return found

    def _prepare(self, statement: Any, first: Mapping[str, Any], *, many: bool) -> Prepared | None:
        try:
            compiled = statement.compile(dialect=self._dialect, column_keys=list(first) or None, for_executemany=many)
            names = [column.keyname for column in compiled._result_columns]
            if (
                any(column.default is None or not column.default.is_scalar for column in compiled.prefetch)
                or len(set(names)) < len(names)
                or (many and (names or self._lists))
                or compiled.effective_returning
            ):
                return None
            return Prepared(compiled, self._dialect, list(first), {name: len(first[name]) for name in self._lists})
        except SQLAlchemyError:  # its own way of executing it says what is wrong
            return None


class Statements:
    """What is prepared of each statement that came more than once, for as long as the statement lives."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._seen: WeakKeyDictionary[Any, Statement | None] = WeakKeyDictionary()

    def prepared(self, statement: Any, parameters: Any) -> Prepared | None:
        """None: it is SQLAlchemy's to execute."""
        try:
            known = self._seen[statement]
        except KeyError:
            self._seen[statement] = None
            return None
        many = isinstance(parameters, list)
        first = (parameters[0] if many else parameters) or _NONE
        if known is None:
            known = self._seen[statement] = Statement(statement, self._dialect, first)
        return known.prepared(statement, first, many=many)

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
