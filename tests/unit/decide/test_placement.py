"""Placement: the node, its storage, bridge and template; headroom kept; refusals by meaning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.decide.placement import place
from flows.domain.node import Node, NodeUsage
from flows.domain.placement import Headroom, Placement, PlacementRequest
from flows.errors import BadInput, Conflict

NONE = Headroom(0, 0.0, 0.0)


def node(name: str, **changes: object) -> NodeUsage:
    values: dict[str, object] = {
        "memory_mb": 65_536,
        "disk_gb": 1_000,
        "cores": 16,
        "storage": f"{name}-zfs",
        "bridge": "vmbr1",
        "templates": {"fabric": 9001},
        "open": True,
    }
    values |= changes
    used = {k: values.pop(k) for k in list(values) if k.startswith("used_")}
    return NodeUsage(Node(name, **values), **used)  # type: ignore[arg-type]  # the test's own keyword table


def want(**changes: object) -> PlacementRequest:
    values: dict[str, object] = {"flavor": "fabric", "memory_mb": 4096, "disk_gb": 20, "cores": 2}
    return PlacementRequest(**(values | changes))  # type: ignore[arg-type]  # the test's own keyword table


def test_names_everything_that_a_container_needs() -> None:
    assert place(want(), [node("pve1")]) == Placement("pve1", "pve1-zfs", "vmbr1", 9001)


def test_takes_the_template_of_the_flavor_on_that_node() -> None:
    full = node("pve1", templates={"fabric": 1, "paper": 2}, used_memory_mb=60_000)
    free = node("pve2", templates={"fabric": 11, "paper": 12})
    assert place(want(flavor="paper"), [full, free]).template_vmid == 12


def test_prefers_the_emptier_node_by_share_not_by_size() -> None:
    large = node("large", memory_mb=100_000, used_memory_mb=60_000)
    small = node("small", memory_mb=50_000, used_memory_mb=10_000)
    assert place(want(), [large, small], NONE).node == "small"


def test_equal_memory_is_decided_by_disk_then_by_name() -> None:
    assert place(want(), [node("a", used_disk_gb=500), node("b")]).node == "b"
    assert place(want(), [node("b"), node("a")]).node == "a"


@pytest.mark.parametrize(
    "closed",
    [
        {"open": False},
        {"cores": 1},
        {"used_memory_mb": 65_536 - 4095},
        {"used_disk_gb": 981},
    ],
)
def test_skips_a_node_that_cannot_take_it(closed: dict[str, object]) -> None:
    busy = node("pve1", **closed)
    other = node("pve2", used_memory_mb=50_000, used_disk_gb=500)
    assert place(want(), [busy, other], NONE).node == "pve2"
    with pytest.raises(Conflict) as refusal:
        place(want(), [busy], NONE)
    assert refusal.value.kind == "no_capacity"


def test_the_last_megabyte_and_gigabyte_may_be_promised() -> None:
    assert place(want(), [node("pve1", used_memory_mb=65_536 - 4096, used_disk_gb=980)], NONE).node == "pve1"


def test_headroom_is_never_promised() -> None:
    room = Headroom(memory_mb=2048, memory_fraction=0.05, disk_fraction=0.10)
    # 5 % of 65,536 MB is more than 2,048 MB: 62,260 MB may be promised, and 900 GB.
    assert place(want(), [node("pve1", used_memory_mb=62_260 - 4096, used_disk_gb=880)], room).node == "pve1"
    for over in ({"used_memory_mb": 62_260 - 4095}, {"used_disk_gb": 881}):
        with pytest.raises(Conflict):
            place(want(), [node("pve1", **over)], room)
    # On a small node the absolute floor is what counts.
    with pytest.raises(Conflict):
        place(want(memory_mb=2049), [node("tiny", memory_mb=4096)], room)


def test_a_flavor_without_template_is_bad_input_even_when_a_closed_node_is_all_there_is() -> None:
    with pytest.raises(BadInput) as refusal:
        place(want(flavor="forge"), [node("pve1")])
    assert refusal.value.field == "flavor"
    with pytest.raises(Conflict):  # the template exists, only nowhere open
        place(want(), [node("pve1", open=False), node("pve2", templates={"paper": 1})])


def test_no_node_at_all_is_a_lack_of_capacity_not_of_sense() -> None:
    with pytest.raises(Conflict) as refusal:
        place(want(), [])
    assert refusal.value.kind == "no_capacity"


nodes = st.lists(
    st.builds(
        lambda i, memory, disk, used, useddisk, is_open: node(
            f"n{i}", memory_mb=memory, disk_gb=disk, used_memory_mb=used, used_disk_gb=useddisk, open=is_open
        ),
        st.integers(0, 9),
        st.integers(0, 70_000),
        st.integers(0, 2_000),
        st.integers(0, 70_000),
        st.integers(0, 2_000),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda n: n.node.name,
)


@given(nodes, st.integers(1, 20_000), st.integers(1, 500))
def test_never_overcommits_and_never_refuses_what_fits(fleet: list[NodeUsage], memory: int, disk: int) -> None:
    room = Headroom()
    fits = {
        n.node.name
        for n in fleet
        if n.node.open and n.used_memory_mb + memory <= room.memory_of(n.node) and n.used_disk_gb + disk <= room.disk_of(n.node)
    }
    try:
        chosen = place(want(memory_mb=memory, disk_gb=disk), fleet, room)
    except Conflict:
        assert not fits
    else:
        assert chosen.node in fits
        assert place(want(memory_mb=memory, disk_gb=disk), list(reversed(fleet)), room) == chosen
