"""A lab killed at any instruction leaves nothing that clean() does not remove, knowing only its directory."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.lab.lxc import clean
from flows.lab.substance import SubstanceError
from tests.support.machines import Lab, leftovers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
_ROOT = Path(__file__).parents[2]
#: Programs that a life starts, at least; a test below counts them.
BOUNDARIES = 30
#: One of each kind for every change: in open, clone, start, freeze, snapshot, backup, restore.
CELLS = [("during", 4), ("during", 7), ("after", 10), ("during", 16)]


def child(directory: Path, images: Path, moment: str, number: int) -> subprocess.Popen[str]:
    # As in flows.lab: a network that no other lab has; two workers have two directories.
    number_of_it = random.Random(str(directory)).randrange(16 * 256)
    network = f"10.{216 + number_of_it // 256}.{number_of_it % 256}.0/24"
    argv = [sys.executable, "-m", "tests.support.machines", str(directory), network, str(images), moment, str(number)]
    return subprocess.Popen(argv, cwd=_ROOT, stdout=subprocess.PIPE, text=True)


def killed_at(directory: Path, images: Path, moment: str, number: int) -> bool:
    """Whether the life reached that boundary."""
    with child(directory, images, moment, number) as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), out
    return process.returncode != 0


def expect_clean(directory: Path) -> None:
    removed = clean(directory)
    assert leftovers(directory) == [], removed
    assert {path.name for path in directory.iterdir()} <= {"archive.tar.zst"}, "no half of an archive"
    assert clean(directory) == []


@pytest.mark.parametrize(("moment", "number"), CELLS)
def test_killed_at_a_boundary(machines_directory: Path, machines_images: Path, moment: str, number: int) -> None:
    assert killed_at(machines_directory, machines_images, moment, number)
    expect_clean(machines_directory)


def test_a_new_lab_opens_over_the_remains(machines_directory: Path, machines_images: Path) -> None:
    assert killed_at(machines_directory, machines_images, "after", 14)
    assert leftovers(machines_directory)
    lab = Lab(machines_directory, machines_images)
    assert lab.sh(lab.container(100), "hostname") == "ct100"
    lab.end()


def test_a_living_lab_is_not_cleaned(machines_lab: Lab) -> None:
    script = "import sys, pathlib; from flows.lab.lxc import clean; clean(pathlib.Path(sys.argv[1]))"
    container = machines_lab.container(130)
    other = subprocess.run([sys.executable, "-c", script, str(machines_lab.directory)], cwd=_ROOT, capture_output=True, text=True)
    assert SubstanceError.__name__ in other.stderr and "a lab lives there" in other.stderr
    assert machines_lab.sh(container, "hostname") == "ct130"
    machines_lab.run(machines_lab.machines.destroy(container))


def test_killed_while_cleaning(machines_directory: Path, machines_images: Path) -> None:
    """The remains of a lab, of whose clean-up each one is killed a little later than the one before."""
    assert killed_at(machines_directory, machines_images, "after", 14)
    script = "import sys, pathlib; from flows.lab.lxc import clean; print('now', flush=True); clean(pathlib.Path(sys.argv[1])); print('done')"
    for patience in (0.0, 0.01, 0.05, 0.1, 0.15, 0.2):
        with subprocess.Popen([sys.executable, "-c", script, str(machines_directory)], cwd=_ROOT, stdout=subprocess.PIPE, text=True) as cleaner:
            assert cleaner.stdout is not None and cleaner.stdout.readline() == "now\n"
            time.sleep(patience)  # not to wait for anything: the moment of the kill
            cleaner.kill()
    expect_clean(machines_directory)


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("number", range(1, BOUNDARIES + 1))
def test_killed_at_every_boundary(machines_directory: Path, machines_images: Path, moment: str, number: int) -> None:
    assert killed_at(machines_directory, machines_images, moment, number)
    expect_clean(machines_directory)


@pytest.mark.soak
def test_there_are_no_more_boundaries(machines_directory: Path, machines_images: Path) -> None:
    assert not killed_at(machines_directory, machines_images, "before", BOUNDARIES + 10)
    assert leftovers(machines_directory) == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(40))
def test_killed_at_any_moment(machines_directory: Path, machines_images: Path, seed: int) -> None:
    patience = random.Random(seed).uniform(0.5, 12.0)
    with child(machines_directory, machines_images, "before", 10_000) as process:
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    expect_clean(machines_directory)
