"""What every connection is set to, whatever the server's own defaults are; and each database's clock. Used by :mod:`flows.state.database`.

========================  =====================================================  ==========================================
set by us                 MariaDB                                                PostgreSQL
========================  =====================================================  ==========================================
time zone                 UTC                                                    UTC
isolation                 READ COMMITTED; a reader: one snapshot, read only      the same
wait for a lock           ``busy_timeout_s`` (rows and tables)                   ``busy_timeout_s``
a statement               ``answer_s`` (server), 5 s more (client)               the same
an idle transaction       closed by the server after ``idle_s``                  the same
text                      utf8mb4                                                UTF-8
values that do not fit    refused (strict SQL mode), never cut                   refused
========================  =====================================================  ==========================================

An idle transaction is one whose process stands still or lost its network: without an end it would keep its locks for ever. One that holds
the epoch's row keeps every other sweep out, so ``bootstrap`` lets it last no longer than an epoch.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event

#: The database's own clock, in milliseconds since 1970.
NOW = {
    # Looks at the file, too: a reader's view begins here and not later.
    "sqlite": "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), EXISTS (SELECT 1 FROM sqlite_master)",
    "mysql": "SELECT CAST(UNIX_TIMESTAMP(UTC_TIMESTAMP(3)) * 1000 AS SIGNED)",
    "postgresql": "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
}
#: Seconds after which a server ends a transaction in which nothing happens, unless the caller says otherwise: longer than any of ours waits
#: for anything.
IDLE_S = 60.0
#: Seconds for a server to take a connection.
CONNECT_S = 5
#: Seconds that the client waits longer than the server should need.
GRACE_S = 5
#: MariaDB's, in place of whatever the server has.
STRICT = "STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"


def options(dialect: str, *, busy_timeout_s: float, answer_s: float | None, idle_s: float | None = None) -> dict[str, Any]:
    """Arguments of the driver's ``connect``. ``answer_s``: seconds for one statement, None without end (migrations); ``idle_s``: for a
    transaction between two of them, None for :data:`IDLE_S`."""
    idle_s = IDLE_S if idle_s is None else idle_s
    if dialect == "sqlite":
        return {"timeout": 0}  # flows.state.patience
    if dialect == "mysql":
        lock = max(1, round(busy_timeout_s))
        session = {
            "time_zone": "'+00:00'",
            "sql_mode": f"'{STRICT}'",  # before the dialect looks: with another one it would quote names differently
            "innodb_lock_wait_timeout": lock,
            "lock_wait_timeout": lock,
            "idle_transaction_timeout": max(1, round(idle_s)),
            "max_statement_time": answer_s or 0,
        }
        command = "SET " + ", ".join(f"SESSION {name} = {value}" for name, value in session.items())
        return {
            "charset": "utf8mb4",
            "init_command": command,
            "connect_timeout": CONNECT_S,
            "read_timeout": None if answer_s is None else answer_s + GRACE_S,
        }
    server = {
        "application_name": "zlh",
        "timezone": "UTC",
        "datestyle": "ISO, MDY",
        "lock_timeout": _ms(busy_timeout_s),
        "statement_timeout": _ms(answer_s or 0),
        "idle_in_transaction_session_timeout": _ms(idle_s),
    }
    return {"server_settings": server, "timeout": CONNECT_S, "command_timeout": None if answer_s is None else answer_s + GRACE_S}


def errors(dialect: str) -> tuple[type[Exception], ...]:
    """What else the driver raises: while it connects, PostgreSQL's is not wrapped by SQLAlchemy."""
    if dialect != "postgresql":
        return ()
    import asyncpg  # type: ignore[import-untyped]  # heavy, and of no use to the others; it ships no types

    return (asyncpg.PostgresError, asyncpg.InterfaceError)


def prepare(engine: Engine) -> None:
    """Sets what belongs to each connection and each transaction of an engine."""
    name = engine.dialect.name
    if name == "sqlite":
        event.listen(engine, "connect", sqlite_connect)
    event.listen(engine, "begin", {"sqlite": sqlite_begin, "mysql": _mysql_begin, "postgresql": _postgresql_begin}[name])


def sqlite_connect(connection: Any, record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def sqlite_begin(conn: Any) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE" if _writes(conn) else "BEGIN")


def _mysql_begin(conn: Any) -> None:
    if not _writes(conn):
        conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")


def _postgresql_begin(conn: Any) -> None:
    if not _writes(conn):
        conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _writes(conn: Any) -> bool:
    return bool(conn.get_execution_options().get("zlh_write"))


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
