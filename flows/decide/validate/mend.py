"""Statements for what no command mends: printed for a person, never run. They work on all three databases. Pure."""

from __future__ import annotations


class Expression(str):
    """SQL as it is, not a text to quote."""

    __slots__ = ()


Value = int | str | None


def update(table: str, where: tuple[str, Value], **values: Value) -> str:
    changes = ", ".join(f"{column} = {literal(value)}" for column, value in values.items())
    return f"SQL: UPDATE {table} SET {changes} WHERE {where[0]} = {literal(where[1])}"  # noqa: S608 - text for a person, its values quoted


def insert(table: str, **values: Value) -> str:
    return f"SQL: INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(literal(v) for v in values.values())})"  # noqa: S608 - as above


def select(table: str, condition: str) -> str:
    return f"SQL: SELECT * FROM {table} WHERE {condition}"  # noqa: S608 - as above


def literal(value: Value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int | Expression):
        return str(value)
    return "'" + value.replace("'", "''") + "'"
