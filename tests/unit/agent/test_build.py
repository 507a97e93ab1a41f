"""The build's own rules. That the whole file works in a container is proven in ``tests/lab``."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agent_build", PROJECT / "agent" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tree(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"# {name}\n")
    return path


def test_the_same_files_give_the_same_bytes(build: ModuleType, tmp_path: Path) -> None:
    names = ["b/__init__.py", "a.py", "__main__.py"]
    one, two = tree(tmp_path / "one", *names), tree(tmp_path / "two", *reversed(names))
    tree(two, "bin/tool", "b/__pycache__/x.pyc", "b-1.dist-info/RECORD", ".lock")
    for path in (one, two):
        build.pack(path, tmp_path / f"{path.name}.pyz")
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.pyz").namelist() == ["__main__.py", "a.py", "b/__init__.py"]


@pytest.mark.parametrize("name", ["x/_speed.cpython-311-x86_64-linux-gnu.so", "x/y.so.1", "x/z.pyd", "x/w.DLL", "x/v.dylib"])
def test_a_compiled_file_is_refused_by_name(build: ModuleType, tmp_path: Path, name: str) -> None:
    with pytest.raises(build.BuildError, match=re.escape(name)):
        build.pack(tree(tmp_path / "p", "a.py", name), tmp_path / "x.pyz")
    assert not (tmp_path / "x.pyz").exists()


def test_the_result_runs_with_the_standard_library_alone(build: ModuleType, tmp_path: Path) -> None:
    packages = tree(tmp_path / "p", "zlh_agent/__init__.py")
    (packages / "zlh_agent/__main__.py").write_text("def main() -> int:\n    print('hello')\n    return 3\n")
    (packages / "__main__.py").write_text(build.MAIN)
    build.pack(packages, tmp_path / "x.pyz")
    done = subprocess.run([sys.executable, "-I", "-S", str(tmp_path / "x.pyz")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "hello\n")


def test_the_lock_names_hashes_and_no_index() -> None:
    text = (PROJECT / "requirements" / "agent.txt").read_text()
    assert "http" not in text.replace("httptools", "") and "index-url" not in text
    pinned = re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)
    assert {"starlette", "uvicorn", "h11"} <= set(pinned) and not {"uvloop", "httptools"} & set(pinned)
    assert all("--hash=sha256:" in part for part in re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:])
