"""Listings: ``zlh servers``, ``findings``, ``repairs``, ``operations``, ``leases``, ``hosts``, ``tokens``, ``customers``, ``audit``;
each with ``show ID``. They read the database alone and are as fast at ten thousand servers as at ten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from sqlalchemy import Select, select

from flows.cli import output, session
from flows.state import tables as t
from flows.state.database import Tx

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Noun:
    """A listing. ``query`` is a select of plain columns whose ``key`` column identifies a row; ``people`` turns a row into table cells."""

    name: str
    help: str
    query: Callable[[], Select[Any]]
    key: str
    at: str | None
    columns: Sequence[str]
    people: Callable[[Mapping[str, Any], int, bool], dict[str, Any]]
    empty: str
    filters: Mapping[str, str]
    alive: Callable[[Select[Any]], Select[Any]] | None = None


def _age(row: Mapping[str, Any], column: str, now: int) -> str:
    return output.duration(now - row[column]) if row[column] is not None else ""


def _servers() -> Select[Any]:
    s, c, o, b = t.servers.c, t.customers.c, t.operations.c, t.observations.c
    return (
        select(
            s.id, s.name, s.ctype, s.flavor, s.version, s.vmid, s.node, s.address, s.state, s.desired, s.edge, s.memory_mb, s.cores, s.disk_gb,
            c.name.label("customer"), b.ready, b.reachable, b.players, b.at.label("observed_at"), o.kind.label("operation"), o.step,
            s.created_at, s.activated_at, s.deleted_at,
        )
        .select_from(
            t.servers.join(t.customers, c.id == s.customer_id)
            .outerjoin(t.operations, o.live_server == s.id)
            .outerjoin(t.observations, b.server_id == s.id)
        )
        .order_by(s.name)
    )  # fmt: skip


def _server(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    ready = {True: "yes", False: "no", None: "?"}[row["ready"]]
    running = f"{row['operation']} {row['step'] or 'queued'}" if row["operation"] else ""
    return {**row, "ct": row["vmid"], "ready": ready, "operation": running, "id": row["id"][-8:]}


def _findings() -> Select[Any]:
    e = t.episodes.c
    return select(t.episodes).with_only_columns(
        e.id, e["check"], e.subject, e.server_id, e.summary, e.reason, e.severity, e.remedy, e.opened_at, e.last_seen_at, e.escalated_at, e.closed_at
    ).order_by(e.opened_at.desc())  # fmt: skip


def _finding(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    return {**row, "id": row["id"][-8:], "since": output.moment(row["opened_at"], utc), "not repaired": row["reason"], "to mend": row["remedy"]}


def _repairs() -> Select[Any]:
    r = t.repairs.c
    return select(
        r.id, r["check"], r.action, r.subject, r.server_id, r.host, r.level, r.counted, r.operation_id, r.intent_at, r.outcome, r.outcome_at, r.detail
    ).order_by(r.intent_at.desc())  # fmt: skip


def _repair(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    took = output.duration(row["outcome_at"] - row["intent_at"]) if row["outcome_at"] else ""
    return {**row, "id": row["id"][-8:], "at": output.moment(row["intent_at"], utc), "outcome": row["outcome"] or "under way", "took": took}


def _operations() -> Select[Any]:
    o, s = t.operations.c, t.servers.c
    return (
        select(
            o.id, o.kind, o.state, s.name.label("server"), o.step, o.attempt, o.claimed, o.queue, o.actor, o.created_at, o.started_at,
            o.progress_at, o.deadline_at, o.finished_at, o.error,
        )
        .join(t.servers, s.id == o.server_id)
        .order_by(o.created_at.desc())
    )  # fmt: skip


def _operation(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    end = row["finished_at"] or now
    why = (row["error"] or {}).get("why") or (row["error"] or {}).get("what", "")
    return {
        **row, "id": row["id"][-8:], "at": output.moment(row["created_at"], utc), "took": output.duration(end - row["created_at"]), "why": why[:80],
    }  # fmt: skip


def _leases() -> Select[Any]:
    lease = t.leases.c
    return select(t.leases).where(lease.holder.is_not(None)).order_by(lease.taken_at)


def _lease(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    left = "expired" if row["expires_at"] <= now else output.duration(row["expires_at"] - now)
    return {**row, "taken": output.moment(row["taken_at"], utc), "left": left}


def _hosts() -> Select[Any]:
    return select(t.nodes).order_by(t.nodes.c.name)


def _host(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    return {**row, "takes new": "yes" if row["open"] else "no", "templates": ", ".join(f"{k}={v}" for k, v in sorted(row["templates"].items()))}


def _tokens() -> Select[Any]:
    k = t.tokens.c
    return (
        select(k.id, k.role, t.customers.c.name.label("customer"), k.label, k.created_at, k.expires_at, k.revoked_at)
        .outerjoin(t.customers, t.customers.c.id == k.customer_id)
        .order_by(k.created_at.desc())
    )


def _token(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    state = "revoked" if row["revoked_at"] else "expired" if row["expires_at"] and row["expires_at"] <= now else "valid"
    return {**row, "id": row["id"][-8:], "state": state, "expires": output.moment(row["expires_at"], utc) or "never"}


def _audit() -> Select[Any]:
    return select(t.audit).order_by(t.audit.c.id.desc())


def _line(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    detail = " ".join(f"{k}={v}" for k, v in row["detail"].items() if v not in (None, ""))
    return {**row, "at": output.moment(row["at"], utc), "detail": detail[:100]}


def _backups() -> Select[Any]:
    b = t.backups.c
    return select(t.backups, t.servers.c.name.label("server")).join(t.servers, t.servers.c.id == b.server_id).order_by(b.created_at.desc())


def _backup(row: Mapping[str, Any], now: int, utc: bool) -> dict[str, Any]:
    verified = output.moment(row["verified_at"], utc) or "no"
    return {**row, "id": row["id"][-8:], "at": output.moment(row["created_at"], utc), "verified": verified, "size": row["size_bytes"]}


NOUNS: Sequence[Noun] = (
    Noun("servers", "What customers own.", _servers, "id", "created_at",
         ("name", "customer", "ctype", "ct", "node", "address", "state", "desired", "ready", "operation"), _server, "no servers",
         {"state": "servers.state", "host": "servers.node", "customer": "customers.name"},
         alive=lambda q: q.where(t.servers.c.state != "deleted")),
    Noun("findings", "What is not as it should be, and why it is not being repaired.", _findings, "id", "opened_at",
         ("id", "check", "subject", "since", "not repaired", "summary", "to mend"), _finding, "no open findings",
         {"check": "episodes.check"}, alive=lambda q: q.where(t.episodes.c.closed_at.is_(None))),
    Noun("repairs", "What the controller did.", _repairs, "id", "intent_at",
         ("id", "at", "check", "action", "subject", "level", "outcome", "took"), _repair, "no repairs",
         {"outcome": "repairs.outcome", "check": "repairs.check", "host": "repairs.host"}),
    Noun("operations", "Orders, and how far they are.", _operations, "id", "created_at",
         ("id", "at", "kind", "server", "state", "step", "attempt", "took", "why"), _operation, "no operations",
         {"state": "operations.state", "kind": "operations.kind", "server": "servers.name"}),
    Noun("leases", "Who may act on what now.", _leases, "subject", "taken_at",
         ("subject", "kind", "holder", "taken", "left", "token", "reason"), _lease, "no lease is held", {"kind": "leases.kind"}),
    Noun("hosts", "Proxmox nodes that take servers.", _hosts, "name", None,
         ("name", "takes new", "memory_mb", "disk_gb", "cores", "storage", "bridge", "templates"), _host, "no hosts: add them first", {}),
    Noun("tokens", "Credentials of the API.", _tokens, "id", "created_at",
         ("id", "role", "customer", "label", "state", "expires"), _token, "no tokens", {}),
    Noun("audit", "Who did what: append-only.", _audit, "id", "at",
         ("id", "at", "actor", "action", "subject", "detail"), _line, "nothing was done yet", {"actor": "audit.actor", "action": "audit.action"}),
    Noun("backups", "Copies, and which were verified.", _backups, "id", "created_at",
         ("id", "at", "server", "type", "size", "verified", "location"), _backup, "no backups", {"server": "servers.name"}),
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """One group per noun: bare it lists, ``show`` gives one row whole."""
    for noun in NOUNS:
        group = typer.Typer(help=noun.help, invoke_without_command=True)
        group.callback(invoke_without_command=True)(_listing(noun))
        group.command("show", help="One, whole.")(_showing(noun))
        app.add_typer(group, name=noun.name)


def _listing(noun: Noun) -> Callable[..., None]:
    def listing(
        ctx: typer.Context,
        json: output.Json = False,
        utc: output.Utc = False,
        limit: output.Limit = 200,
        since: output.Since = None,
        everything: bool = typer.Option(False, "--all", help="closed and deleted ones too"),
        where: list[str] = typer.Option([], "--where", metavar="NAME=VALUE", help=f"filter: {', '.join(noun.filters) or 'none here'}"),  # noqa: B008 - Typer's way
    ) -> None:
        if ctx.invoked_subcommand is not None:
            return
        rows, now = session.read(_load(noun, where, since, limit, everything))
        if json:
            output.lines([_program(row) for row in rows])
        else:
            output.table([noun.people(row, now, utc) for row in rows], noun.columns, noun.empty)

    listing.__doc__ = noun.help
    return listing


def _load(noun: Noun, where: Sequence[str], since: str | None, limit: int, everything: bool) -> Callable[[Tx], Awaitable[tuple[Rows, int]]]:
    from flows.errors import BadInput

    async def look(tx: Tx) -> tuple[Rows, int]:
        query = noun.query()
        if noun.alive is not None and not everything:
            query = noun.alive(query)
        for condition in where:
            name, equals, value = condition.partition("=")
            if not equals or name not in noun.filters:
                raise BadInput("--where", condition, why="is no filter of this listing", remedy=f"use {', '.join(noun.filters) or 'none'}")
            table, _, column = noun.filters[name].partition(".")
            query = query.where(t.metadata.tables[table].c[column] == value)
        if since is not None and noun.at is not None:
            query = query.where(query.selected_columns[noun.at] >= tx.now - int(output.seconds(since, "--since") * 1000))
        return [dict(row._mapping) for row in await tx.execute(query.limit(limit))], tx.now

    return look


def _showing(noun: Noun) -> Callable[..., None]:
    def show(given: str = typer.Argument(..., metavar="ID", help="id, its beginning or end, or a name"), json: output.Json = False) -> None:
        async def look(tx: Tx) -> dict[str, Any]:
            rows = [dict(row._mapping) for row in await tx.execute(noun.query())]
            named = [r for r in rows if given in (r.get("name"), r.get("server"))]
            chosen = str(named[0][noun.key]) if named else output.by_prefix([str(r[noun.key]) for r in rows], given, noun.name.removesuffix("s"))
            return next(r for r in rows if str(r[noun.key]) == chosen)

        row = session.read(look)
        if json:
            output.data(_program(row))
            return
        width = max(len(k) for k in row)
        for key, value in row.items():
            shown = f"{value} ({output.moment(value)})" if key.endswith("_at") and isinstance(value, int) else value
            output.text(f"{key.ljust(width)}  {'' if value is None else shown}")

    return show


def _program(row: Mapping[str, Any]) -> dict[str, Any]:
    """Times as ISO 8601 in UTC, the rest as stored."""
    return {k: output.iso(v) if (k.endswith("_at") or k == "at") and isinstance(v, int) else v for k, v in row.items()}
