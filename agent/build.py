"""``python agent/build.py --output DIR``: the agent as one file, ``DIR/zlh-agent-<version>.pyz``, whose path is printed.

What it needs comes from ``requirements/agent.txt``, pinned by hash. The same sources give the same bytes: order, times and modes are fixed, and
what an installer writes of its own (records, caches, compiled files) stays outside. Nothing is written outside of DIR. Needs pip or uv.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SOURCES, LOCK = PROJECT / "agent" / "zlh_agent", PROJECT / "requirements" / "agent.txt"
#: Endings of files that only one Python on one machine can load.
COMPILED = re.compile(r"\.(so|pyd|dll|dylib)(\.\d+)*$", re.IGNORECASE)
#: What installers leave beside the packages; differs from machine to machine.
LEFT_OUT = re.compile(r"^bin/|(^|/)__pycache__/|\.pyc$|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|uv_cache\.json)$|(^|/)\.lock$|^\.")
#: The earliest time that a zip can hold.
EPOCH = (1980, 1, 1, 0, 0, 0)
MAIN = "import sys\n\nfrom zlh_agent.__main__ import main\n\nsys.exit(main())\n"


class BuildError(Exception):
    """The text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds the agent as one file.")
    parser.add_argument("--output", type=Path, required=True, help="directory for the result; made if need be")
    chosen = parser.parse_args(arguments)
    try:
        path = build(chosen.output)
    except BuildError as error:
        sys.stderr.write(f"build: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


def build(output: Path) -> Path:
    """The finished file, put in place by rename. Raises BuildError."""
    output.mkdir(parents=True, exist_ok=True)
    path = output.resolve() / f"zlh-agent-{version()}.pyz"
    with tempfile.TemporaryDirectory(prefix=".build-", dir=output) as scratch:
        packages, cache = Path(scratch) / "packages", Path(scratch) / "cache"
        install(packages, cache)
        (packages / "zlh_agent").mkdir()
        for source in SOURCES.glob("*.py"):
            shutil.copy(source, packages / "zlh_agent")
        (packages / "__main__.py").write_text(MAIN)
        made = Path(scratch) / path.name
        pack(packages, made)
        made.chmod(0o755)
        os.replace(made, path)
    return path


def version() -> str:
    found = re.search(r'^__version__ = "([0-9A-Za-z.+-]+)"$', (SOURCES / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise BuildError(f"{SOURCES / '__init__.py'} has no __version__")
    return found[1]


def install(packages: Path, cache: Path) -> None:
    """The locked wheels, unpacked. Raises BuildError."""
    options = ["--target", str(packages), "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)]
    uv = shutil.which("uv", path=os.pathsep.join([str(PROJECT / ".uv" / "bin"), os.environ.get("PATH", "")]))
    if uv is not None:
        trust = ["--system-certs"] if Path("/etc/ssl/certs/ca-certificates.crt").exists() else []
        command = [uv, "pip", "install", "--quiet", *trust, "--cache-dir", str(cache), "--python", sys.executable, *options]
    elif importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-compile", "--disable-pip-version-check", *options]
    else:
        raise BuildError(f"neither uv nor pip is there: run `make install`, or install pip for {sys.executable}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a list of our own, no shell
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-800:]}")


def pack(packages: Path, path: Path) -> None:
    """Raises BuildError naming every compiled file."""
    files = sorted(_files(packages))
    compiled = [name for name in files if COMPILED.search(name)]
    if compiled:
        raise BuildError(f"compiled files do not import from a .pyz, and fit one Python alone: {', '.join(compiled)}")
    with path.open("wb") as file:
        file.write(b"#!/usr/bin/python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in files:
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr, entry.create_system = 0o100644 << 16, 3  # stored: compressors of other versions give other bytes
                archive.writestr(entry, (packages / name).read_bytes())


def _files(packages: Path) -> Iterator[str]:
    for path in packages.rglob("*"):
        name = path.relative_to(packages).as_posix()
        if path.is_file() and not LEFT_OUT.search(name):
            yield name


if __name__ == "__main__":
    sys.exit(main())
