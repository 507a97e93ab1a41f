"""Building the base image, killed and at once. Minutes each: debootstrap."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.lab.lxc import image, recipe
from flows.lab.lxc.programs import Programs

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(3_000)]
_ROOT = Path(__file__).parents[2]
_BUILD = """
import asyncio, pathlib, sys
from flows.lab.lxc import image
from flows.lab.lxc.programs import Programs
print(asyncio.run(image.ensure(pathlib.Path(sys.argv[1]), Programs(pathlib.Path(sys.argv[2])))))
"""


def builder(images: Path, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _BUILD, str(images), str(directory)], cwd=_ROOT, stdout=subprocess.PIPE, text=True)


def busy(images: Path) -> list[str]:
    """Processes and mounts of a build, in any mount namespace."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            texts = Path("/proc", entry, "cmdline").read_text(errors="replace") + Path("/proc", entry, "mountinfo").read_text(errors="replace")
        except OSError:
            continue
        if state not in "ZX" and f"{images}/.building-" in texts:
            found.append(entry)
    return found


@pytest.mark.usefixtures("machines_images")  # skips where it cannot be
def test_killed_and_built_once_by_two(tmp_path: Path) -> None:
    images = tmp_path / "images"
    end = time.monotonic() + 600
    with builder(images, tmp_path / "a") as killed:
        while not any(images.glob(".building-*/root/var/lib/dpkg/info/systemd.list")):  # in the midst of unpacking
            assert killed.poll() is None and time.monotonic() < end, "never happened"
            time.sleep(0.1)
        assert busy(images)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    while busy(images):
        assert time.monotonic() < end, "debootstrap outlives its lab"
        time.sleep(0.05)
    assert not (images / recipe.digest()).exists()
    (remains,) = images.glob(".building-*")

    two = [builder(images, tmp_path / name) for name in ("b", "c")]
    seen: set[Path] = set()
    while any(one.poll() is None for one in two):
        assert time.monotonic() < end + 900, "never happened"
        seen |= set(images.glob(".building-*"))
        time.sleep(0.1)
    for one in two:
        assert one.communicate()[0].strip() == str(image.path(images))
        assert one.returncode == 0
    assert len(seen - {remains}) == 1, "the second one takes what the first one built"
    assert sorted(path.name for path in images.iterdir()) == [".lock", recipe.digest()]
    assert (image.path(images) / "usr/bin/restic").is_file()
    assert asyncio.run(image.ensure(images, Programs(tmp_path / "d"))) == image.path(images)
