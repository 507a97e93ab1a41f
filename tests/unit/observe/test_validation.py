"""What the looks derive from settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from flows.domain.records import Records, Reservation, ServerRecord
from flows.domain.sources import ProxmoxView
from flows.observe.validation import Lookers, _containers, expected_of, limits_of, server_of, workers
from flows.settings import Settings
from flows.state.database import Database


def test_the_limits_follow_the_settings() -> None:
    limits = limits_of(Settings())
    assert (limits.stuck_ms, limits.operation_ms, limits.grace_ms) == (900_000, 3_600_000, 180_000)


def test_a_machine_with_several_addresses_is_one() -> None:
    settings = Settings.model_validate({"topology": {"hosts": ("a=10.0.0.1", "a=fd00::1", "b=10.0.0.2")}})
    assert expected_of(settings, "here").hosts == {"a": frozenset({"10.0.0.1", "fd00::1"}), "b": frozenset({"10.0.0.2"})}
    assert expected_of(Settings(), "here").hosts == {"here": frozenset()}


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis://:p@ss@10.0.0.5:6379/0", "10.0.0.5"),
        ("mysql+asyncmy://zlh:x@db.example/zlh", "db.example"),
        ("postgresql+asyncpg://zlh:x@[fd00::5]:5432/zlh", "fd00::5"),
        ("sqlite+aiosqlite:///var/zlh.db", ""),
    ],
)
def test_the_server_of_a_url(url: str, host: str) -> None:
    assert server_of(url) == host


@dataclass
class _Proxmox:
    """One that says of a number that it is not absent, and where it is."""

    place: tuple[str, str] | None

    async def proven_absent(self, vmid: int, *, template_vmid: int | None = None) -> bool:
        return False

    async def where(self, vmid: int) -> tuple[str, str] | None:
        return self.place


@pytest.mark.parametrize(
    ("place", "problems", "unlooked"), [(("qemu", "pve2"), 1, 0), (("lxc", "pve1"), 0, 0), (None, 0, 1)], ids=["another", "came_since", "nowhere"]
)
async def test_what_is_not_listed_and_not_absent_is_looked_for_again(place: tuple[str, str] | None, problems: int, unlooked: int) -> None:
    server = ServerRecord(
        id="s1", name="fern", live_name="fern", ctype="game", state="active", node="pve1", vmid=10_001, address="10.20.0.1",
        created_at=0, activated_at=1, deleted_at=None,
    )  # fmt: skip
    held = {10_001: Reservation("10001", "reserved", "s1", 0, None, "active")}
    known = Records(10_000, (server,), (), (), held, {}, (), (), ())
    look = Lookers(Settings(), cast(Any, None), cast(Any, _Proxmox(place)), cast(Any, None), None, "here")
    found, unknown = await _containers(look, known, ProxmoxView({}, {"pve1": True}), 5_000)
    assert [p.rule for p in found] == ["container_of_another"] * problems
    assert len(unknown) == unlooked


async def test_looking_for_who_is_at_work_makes_no_database(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'zlh.db'}")

    async def nobody() -> list[Any]:
        return []

    report = await workers(Lookers(Settings(), database, cast(Any, None), nobody, None, "here"))
    await database.close()
    assert "there is no such file" in report.unlooked[0].why
    assert not os.listdir(tmp_path)
