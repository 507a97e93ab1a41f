"""What tests on real containers share."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.lab.lxc import clean, image
from flows.lab.lxc.programs import Programs
from tests.support.machines import Lab, leftovers


@pytest.fixture(scope="session")
def machines_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of base images, kept between runs; the image of the present recipe is in it."""
    if os.geteuid() != 0:
        pytest.skip("not root: no containers")
    for program in ("lxc-start", "debootstrap", "zstd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: make lab-host")
    images = Path("/var/cache/zlh-lab/images")
    asyncio.run(image.ensure(images, Programs(tmp_path_factory.mktemp("image"))))
    return images


@pytest.fixture
def machines_directory(tmp_path: Path) -> Iterator[Path]:
    """A lab's directory; whatever a test leaves in it is ended, and nothing of it may resist."""
    yield tmp_path
    clean(tmp_path)
    assert leftovers(tmp_path) == []


@pytest.fixture(scope="module")
def machines_lab(tmp_path_factory: pytest.TempPathFactory, machines_images: Path) -> Iterator[Lab]:
    """One lab for a module: each of its tests takes VMIDs of its own."""
    directory = tmp_path_factory.mktemp("lab")
    lab = Lab(directory, machines_images)
    try:
        yield lab
    finally:
        lab.end()
    assert leftovers(directory) == []
