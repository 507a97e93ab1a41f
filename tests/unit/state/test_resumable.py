"""DDL that MariaDB may be given twice."""

from __future__ import annotations

import pytest

from flows.state.resumable import repeatable


@pytest.mark.parametrize(
    ("plain", "safe"),
    [
        ("\nCREATE TABLE audit (", "\nCREATE TABLE IF NOT EXISTS audit ("),
        ("CREATE INDEX ix_a ON audit (at)", "CREATE INDEX IF NOT EXISTS ix_a ON audit (at)"),
        ("CREATE UNIQUE INDEX ix_a ON audit (at)", "CREATE UNIQUE INDEX IF NOT EXISTS ix_a ON audit (at)"),
        ("CREATE TRIGGER t BEFORE", "CREATE TRIGGER IF NOT EXISTS t BEFORE"),
        ("ALTER TABLE servers ADD COLUMN x INT", "ALTER TABLE servers ADD COLUMN IF NOT EXISTS x INT"),
        ("ALTER TABLE `control` DROP COLUMN x", "ALTER TABLE `control` DROP COLUMN IF EXISTS x"),
        ("DROP TABLE audit", "DROP TABLE IF EXISTS audit"),
        ("DROP INDEX ix_a ON audit", "DROP INDEX IF EXISTS ix_a ON audit"),
        ("CREATE TABLE IF NOT EXISTS audit (", "CREATE TABLE IF NOT EXISTS audit ("),
        ("INSERT INTO audit VALUES ('CREATE TABLE x')", "INSERT INTO audit VALUES ('CREATE TABLE x')"),
        ("ALTER TABLE servers MODIFY x INT", "ALTER TABLE servers MODIFY x INT"),
    ],
)
def test_a_statement_that_may_run_twice(plain: str, safe: str) -> None:
    assert repeatable(plain) == safe
