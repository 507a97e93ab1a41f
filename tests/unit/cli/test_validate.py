"""``zlh validate``: clean, findings, could not look; each with its exit status, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import update

from flows.state import tables as t
from flows.state.database import Tx

Zlh = Callable[..., Any]
Write = Callable[[Callable[[Tx], Awaitable[Any]]], Any]


def test_without_proxmox_the_rest_is_looked_at_and_nothing_is_clean(zlh: Zlh) -> None:
    said = zlh("validate", "database")
    assert said.status == 3
    assert "not looked at: records without container and the reverse" in said.out
    assert "clean" not in said.out


def test_a_finding_names_the_rows_and_the_command(zlh: Zlh, write: Write, fleet: Any) -> None:
    async def steal(tx: Tx) -> None:
        await tx.execute(update(t.servers).where(t.servers.c.id == fleet.ids["moss"]).values(address="10.20.0.9"))
        await tx.execute(update(t.servers).where(t.servers.c.id == fleet.ids["fern"]).values(address="10.20.0.9"))

    write(steal)
    said = zlh("validate", "database", "--json")
    assert said.status == 1
    told = json.loads(said.out)
    assert told["clean"] is False
    [finding] = [f for f in told["findings"] if f["rule"] == "duplicate_address"]
    assert sorted(finding["objects"]) == sorted(f"servers:{fleet.ids[name]}" for name in ("moss", "fern"))
    assert "zlh maintenance on" in finding["remedy"]
    assert set(told) == {"clean", "findings", "unlooked", "looked"}


def test_tables_of_another_revision_are_a_finding_and_nothing_else_is_read(zlh: Zlh, write: Write) -> None:
    async def older(tx: Tx) -> None:
        await tx.conn.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")

    write(older)
    said = zlh("validate", "database", "--json")
    told = json.loads(said.out)
    assert said.status == 1
    assert [f["rule"] for f in told["findings"]] == ["migration_head"]
    assert [u["what"] for u in told["unlooked"]] == ["every other rule"]


def test_a_database_that_does_not_answer_is_no_clean_one(zlh: Zlh, home: Path) -> None:
    """And looking makes none where there is none."""
    (home / "zlh.db").unlink()
    assert zlh("validate", "database").status == 3
    assert not (home / "zlh.db").exists()
    (home / "zlh.db").mkdir()
    said = zlh("validate", "database", "--json")
    assert said.status == 3
    assert not json.loads(said.out)["findings"]


def test_without_an_engine_the_workers_are_not_known(zlh: Zlh) -> None:
    said = zlh("validate", "workers")
    assert said.status == 3
    assert "not looked at: the engine's workers" in said.out


def test_all_of_it_is_what_no_word_means(zlh: Zlh) -> None:
    said = zlh("validate")
    assert "records without container" in said.out
    assert "the engine's workers" in said.out
    assert said.status == 3
