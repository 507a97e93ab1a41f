"""Names, from the directory alone."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flows.lab.lxc import names


def test_names_fit_and_differ(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for make in (names.bridge_name, names.veth_prefix, names.container_prefix, lambda d: names.veth_name(d, 999_999_999)):
        assert make(one) == make(one) != make(other)
        assert len(make(one)) <= 15
    assert len({names.veth_name(one, vmid) for vmid in range(100, 5_000)}) == 4_900
    assert names.hardware_address(one, 100).startswith("02:") and len(names.hardware_address(one, 100)) == 17
    assert names.default_network(one).subnet_of(IPv4Network("10.213.0.0/16"))
    assert names.default_network(one).prefixlen == 24


def test_a_link_is_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert names.tag(tmp_path / "link") == names.tag(tmp_path / "real")
    assert names.mark(tmp_path / "link") == {"ZLH_LAB_DIRECTORY": str((tmp_path / "real").resolve())}


@pytest.mark.parametrize(("path", "usable"), [("/a/b-c_d.e+f", True), ("/a:b", False), ("/a,b", False), ("/a b", False), ("/a\nb", False)])
def test_paths(path: str, usable: bool) -> None:
    assert names.usable(Path(path)) is usable


@pytest.mark.parametrize(
    ("name", "usable"),
    [("before", True), ("a-1_b", True), ("", False), ("x", False), ("1a", False), ("../x", False), ("a/b", False), ("a" * 41, False)],
)
def test_snapshot_names(name: str, usable: bool) -> None:
    assert names.usable_snapshot(name) is usable
