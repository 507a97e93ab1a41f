"""Containers on a machine where things fail: the disk is full, the network is taken, somebody lives there already."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flows.lab.lxc import Machines, bridge_name, clean
from flows.lab.substance import SubstanceError
from tests.support.machines import Lab, leftovers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


@pytest.fixture
def machines_small(tmp_path: Path, machines_images: Path) -> Iterator[Lab]:
    """A lab on a disk of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "lab-test", str(disk)], check=True)
    try:
        lab = Lab(disk, machines_images)
        yield lab
        lab.end()
        assert leftovers(disk) == []
    finally:
        clean(disk)
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _files(directory: Path) -> list[str]:
    """What the lab has made, but for what is in the containers."""
    patterns = (
        "*",
        "zlh-containers/*",
        "zlh-containers/scratch/*",
        "zlh-containers/machines/*",
        "zlh-containers/machines/*/*",
        "zlh-containers/machines/*/snapshots/*",
    )
    return sorted(str(path) for pattern in patterns for path in directory.glob(pattern) if path.name != "snapshots")


def test_full_disk(machines_small: Lab) -> None:
    """Each deed says what the matter is, on one line, and leaves things as they were; with room again each succeeds."""
    lab, machines = machines_small, machines_small.machines
    container = lab.container(120)
    lab.sh(container, "head -c 14M /dev/urandom > /srv/world")
    archive = lab.directory / "a.tar.zst"
    target = lab.container(121, start=False)
    lab.run(machines.destroy(target))
    before = _files(lab.directory)
    for deed in (
        lambda: machines.snapshot(container, "full"),
        lambda: machines.backup(container, archive, lambda _: None),
        lambda: machines.clone(container, target),
    ):
        with pytest.raises(SubstanceError, match="No space left on device") as caught:
            lab.run(deed())
        assert "\n" not in str(caught.value)
        assert lab.sh(container, "stat -c %s /srv/world") == str(14 << 20), "it runs on"
    assert _files(lab.directory) == before
    with pytest.raises(SubstanceError, match="does not exist"):
        lab.run(machines.drop_snapshot(container, "full"))
    assert lab.sh(container, "rm /srv/world; echo small > /srv/world; cat /srv/world") == "small"
    with pytest.raises(SubstanceError, match=r"backup: .*No space left on device"):
        lab.run(machines.backup(container, archive, lambda _: None))
    assert _files(lab.directory) == before
    lab.run(machines.snapshot(container, "full"))
    lab.run(machines.clone(container, target))
    lab.run(machines.start(target))
    assert lab.sh(target, "cat /srv/world") == "small"


def test_two_labs(machines_lab: Lab, machines_directory: Path, machines_images: Path) -> None:
    """Side by side; neither takes the other's network or directory, and the end of one is not the other's."""
    lab = machines_lab
    mine = lab.container(122)
    with pytest.raises(SubstanceError, match=f"network {lab.network} is already in use: .*{bridge_name(lab.directory)}"):
        asyncio.run(Machines(machines_directory, lab.network, machines_images).open())
    assert leftovers(machines_directory) == []
    with pytest.raises(SubstanceError, match="a lab lives there already"):
        asyncio.run(Machines(lab.directory, IPv4Network("10.215.0.0/24"), machines_images).open())

    other = Lab(machines_directory, machines_images)
    theirs = other.container(122)
    assert other.sh(theirs, "hostname") == lab.sh(mine, "hostname") == "ct122"
    other.end()
    assert lab.sh(mine, "hostname") == "ct122"
    assert clean(machines_directory) == []
    lab.run(lab.machines.destroy(mine))


def test_the_bridge_refuses_what_leads_elsewhere(machines_directory: Path, machines_images: Path) -> None:
    for network in ("192.0.2.0/31", "8.8.8.0/24", "127.0.0.0/8"):
        with pytest.raises(SubstanceError, match="network"):
            asyncio.run(Machines(machines_directory, IPv4Network(network), machines_images).open())
        assert leftovers(machines_directory) == []


def test_a_path_that_mount_options_cannot_hold(tmp_path: Path, machines_images: Path) -> None:
    directory = tmp_path / "a:b,c"
    with pytest.raises(SubstanceError, match="cannot use such a path"):
        asyncio.run(Machines(directory, IPv4Network("10.215.0.0/24"), machines_images).open())
    assert not directory.exists()
