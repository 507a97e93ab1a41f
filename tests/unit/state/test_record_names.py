"""What customers and nodes may be called, and how big a node may be: refused here, whoever asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flows.domain.node import Node
from flows.errors import BadInput, Conflict
from flows.state import customers, nodes
from flows.state.database import Database

NODE = Node("pve1", 65_536, 1_000, 16, "local-lvm", "vmbr0", {"fabric": 9000})


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\0b", "a\nb", " ada", "ada ", "\u200bada"])
async def test_a_name_that_nobody_can_type_is_refused(timed: Database, name: str) -> None:
    async with timed.write() as tx:
        with pytest.raises(BadInput) as refused:
            await customers.add(tx, name, "basic")
        assert (refused.value.field, bool(refused.value.remedy)) == ("name", True)
        assert await customers.list_(tx) == []


@pytest.mark.parametrize("name", ["a", "x" * 64, "Ada Lovelace", "Ødegård & Søn", "李"])
async def test_people_and_firms_are_called_many_things(timed: Database, name: str) -> None:
    async with timed.write() as tx:
        await customers.add(tx, name, "basic")
        with pytest.raises(Conflict, match="zlh customers"):
            await customers.add(tx, name, "basic")


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_mb": -5}, {"memory_mb": 10**20}, {"disk_gb": 0}, {"cores": 0}, {"storage": ""}, {"storage": "a b"}, {"bridge": ""}, {"name": ""},
        {"name": "pve1.example"}, {"templates": {"fabric": 99}},
    ],
    ids=str,
)  # fmt: skip
async def test_a_node_of_nothing_is_refused(timed: Database, wrong: dict[str, Any]) -> None:
    async with timed.write() as tx:
        with pytest.raises(BadInput) as refused:
            await nodes.put(tx, replace(NODE, **wrong))
        assert refused.value.field in wrong
        assert await nodes.list_(tx) == []
