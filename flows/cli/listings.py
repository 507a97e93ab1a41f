"""Listings: ``zlh servers``, ``findings``, ``operations`` and so on; bare they list, ``show ID`` gives one row whole.

They read the database alone, with one query, and are as fast at ten thousand servers as at ten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

from flows import environment
from flows.cli import output, session
from flows.cli.nouns import BY_NAME, NOUNS, Noun
from flows.errors import AutomationError, BadInput, NotFound
from flows.state.quick import Query, Rows

#: Of an id its beginning or end is enough from this length on; for what cannot be taken back, from the other on.
LEAST_PART, LEAST_FINAL = 4, 8
#: Window (s) and attempts of the breaker where no setting says otherwise: reading all settings takes longer than a listing may.
BREAKER = (3600.0, 3)
#: A number with more digits is no id: databases count to 2^63.
MOST_DIGITS = 18


def add_to(app: typer.Typer) -> None:
    """One group per noun."""
    for noun in NOUNS:
        group = typer.Typer(help=noun.help, invoke_without_command=True)
        group.callback(invoke_without_command=True)(_listing(noun))
        group.command("show", help="One, whole.")(_showing(noun))
        app.add_typer(group, name=noun.name)


def _listing(noun: Noun) -> Callable[..., None]:
    def listing(ctx: typer.Context, json: bool, utc: bool, wide: bool, limit: int, since: str | None, everything: bool, **given: str | None) -> None:
        if ctx.invoked_subcommand is None:
            show_all(noun, given, json=json, utc=utc, wide=wide, limit=limit, since=since, everything=everything)

    options: dict[str, tuple[Any, Any]] = {
        "ctx": (typer.Context, inspect.Parameter.empty),
        **{name: (_filter(noun, name), None) for name in noun.filters},
        "since": (output.Since, None),
        "limit": (output.Limit, 200),
        "everything": (Annotated[bool, typer.Option("--all", help="what is over, too")], False),
        "wide": (output.Wide, False),
        "utc": (output.Utc, False),
        "json": (output.Json, False),
    }
    kind = inspect.Parameter.KEYWORD_ONLY
    shape = [inspect.Parameter(name, kind, default=default, annotation=hint) for name, (hint, default) in options.items()]
    listing.__signature__ = inspect.Signature(shape)  # type: ignore[attr-defined]  # how a function tells Typer its options
    listing.__annotations__ = {name: hint for name, (hint, _) in options.items()}
    listing.__doc__ = noun.help
    return listing


def _filter(noun: Noun, name: str) -> Any:
    """An option; where all values are known, no other is taken."""
    kind: Any = Literal[tuple(str(value) for value in noun.choices[name])] if name in noun.choices else str
    return Annotated[kind | None, typer.Option(f"--{name}", help=f"only this {name}")]


def show_all(
    noun: Noun,
    where: Mapping[str, str | None],
    *,
    json: bool,
    utc: bool = False,
    wide: bool = False,
    limit: int = 200,
    since: str | None = None,
    everything: bool = False,
) -> None:
    """Prints a listing; on a terminal says on stderr when there is more."""
    rows, now = select(noun, where, limit=limit + 1, since=since, everything=everything)
    more, rows = len(rows) > limit, rows[:limit]
    if json:
        output.lines([output.program(row) for row in rows])
    else:
        output.table([noun.people(row, now, utc) for row in rows], noun.columns, f"no {noun.name} yet" if everything else noun.empty, wide=wide)
    if more:
        output.remark(f"there are more than {limit}: --limit")


def select(noun: Noun, where: Mapping[str, str | None], *, limit: int, since: str | None = None, everything: bool = False) -> tuple[Rows, int]:
    """Rows and the database's time."""
    age = None if since is None else int(output.seconds(since, "--since") * 1000)
    if age is not None and not noun.at:
        raise BadInput("--since", since, why=f"{noun.name} have no time", remedy="leave it out")

    def make(now: int) -> Query:
        wanted = {name: value for name, value in where.items() if value is not None}
        conditions = [f"{noun.filters[name]} = :{name}" for name in wanted]
        if noun.alive and not everything:
            conditions.append(f"({noun.alive})")
        if age is not None:
            conditions.append(f"{noun.at} >= :oldest")
            wanted["oldest"] = now - age  # type: ignore[assignment]  # a number among the texts
        return _query(noun, conditions, wanted, now, limit)

    return session.rows(make)


def one(noun: Noun, given: str, *, final: bool = False) -> tuple[dict[str, Any], int]:
    """The row that a person means: by name, by id, or by an id's beginning or end. ``final``: for what cannot be taken back, or hurts
    somebody; then more of an id is needed. Raises NotFound, or BadInput where nothing is given, too little, or several fit."""
    what, least = noun.name.removesuffix("s"), LEAST_FINAL if final else LEAST_PART
    if not given.strip():
        raise BadInput(what, given, why="is empty", remedy=f"give its {'name or ' if noun.names else ''}id: zlh {noun.name}")
    if noun.numbered and not (given.isascii() and given.isdigit() and len(given) <= MOST_DIGITS):
        raise _missing(noun, given)
    parameters: dict[str, Any] = {"given": int(given) if noun.numbered else given}
    fits = [f"{name} = :given" for name in (*noun.names, noun.key)]
    if not noun.numbered:
        fits += [f"{noun.key} LIKE :begin ESCAPE '!'", f"{noun.key} LIKE :ending ESCAPE '!'"]
        parameters |= {"begin": f"{_escaped(given)}%", "ending": f"%{_escaped(given)}"}
    rows, now = session.rows(lambda now: _query(noun, [f"({' OR '.join(fits)})"], parameters, now, 50))
    exact = [row for row in rows if given in (str(row.get(_column(noun.key))), *(row.get(_label(noun, name)) for name in noun.names))]
    living = [row for row in exact if row.get("deleted_at") is None]
    for found in (living[:1], exact[:1]):
        if found:
            return found[0], now
    if not rows:
        raise _missing(noun, given)
    if len(given) < least:
        raise BadInput(what, given, why=f"of an id {least} characters are needed here", remedy=f"give more of the id: zlh {noun.name} --json")
    if len(rows) > 1:
        raise BadInput(what, given, why=f"{len(rows)} ids begin or end so", remedy="give more of the id")
    return rows[0], now


def _missing(noun: Noun, given: str) -> NotFound:
    return NotFound(f"{noun.name.removesuffix('s')} {given}", why="there is none", remedy=f"zlh {noun.name} --all")


def _escaped(given: str) -> str:
    """For LIKE with ``ESCAPE '!'``."""
    return given.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _column(name: str) -> str:
    return "id" if name == "x.server_id" else name.partition(".")[2]


def _label(noun: Noun, name: str) -> str:
    """What the query calls a column by which rows are named."""
    return "server" if name == "s.name" and noun.name != "servers" else _column(name)


def _query(noun: Noun, conditions: list[str], parameters: Mapping[str, Any], now: int, limit: int) -> Query:
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    sql = f"{noun.sql}{where} ORDER BY {noun.order} LIMIT {int(limit)}"
    values = dict(parameters)
    if ":now" in sql:
        values["now"] = now
    if ":window" in sql:
        values |= _breaker_limits(sql)
    return Query(sql, values, noun.json, noun.booleans)


def _breaker_limits(sql: str) -> dict[str, int]:
    window_s, attempts = BREAKER
    if any(variable.startswith("ZLH_POLICY__BREAKER") for variable in environment.merged(session.environ())):
        policy = session.settings().policy
        window_s, attempts = policy.breaker_window_s, policy.breaker_attempts
    limits = {"window": int(window_s * 1000), "attempts": attempts}
    return {name: value for name, value in limits.items() if f":{name}" in sql}


def _showing(noun: Noun) -> Callable[..., None]:
    def complete(incomplete: str) -> list[str]:
        return completions(noun, incomplete)

    def show(
        given: str = typer.Argument(..., metavar="ID", help="id, its beginning or end, or a name", autocompletion=complete),
        json: output.Json = False,
        utc: output.Utc = False,
    ) -> None:
        row, _ = one(noun, given)
        output.data(output.program(row)) if json else output.whole(row, utc)

    return show


def completions(noun: Noun, incomplete: str) -> list[str]:
    """What a shell may complete: names where rows have one, else ids. A shell gets no error: it would print it into the line."""
    column = noun.names[0] if noun.names else noun.key
    conditions = [f"{column} LIKE :begin ESCAPE '!'", *([f"({noun.alive})"] if noun.alive else [])]
    try:
        rows, _ = session.rows(lambda now: _query(noun, conditions, {"begin": f"{_escaped(incomplete)}%"}, now, 100))
    except AutomationError:
        return []
    return [str(row[_label(noun, column)]) for row in rows]


def complete_server(incomplete: str) -> list[str]:
    """Names of servers."""
    return completions(BY_NAME["servers"], incomplete)


def complete_customer(incomplete: str) -> list[str]:
    """Names of customers."""
    return completions(BY_NAME["customers"], incomplete)


def complete_host(incomplete: str) -> list[str]:
    """Names of hosts."""
    return completions(BY_NAME["hosts"], incomplete)


def complete_operation(incomplete: str) -> list[str]:
    """Ids of operations."""
    return completions(BY_NAME["operations"], incomplete)
