"""What was built once is kept: ``<cache>/<name>-<hash of all that went in>/``. Used by :mod:`flows.lab.wares`.

A build works in a directory of its own and is published by one rename, so a directory of that name is whole. Builders of the same name wait
for each other; one that was killed leaves nothing that a later one would take, and its children die with it (they hold the lock until then).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flows.errors import AutomationError, Busy, TaskFailed

#: Where all labs of a machine keep what they built.
CACHE = Path("/var/cache/zlh-lab/wares")
#: Seconds that a builder waits for another, and that one command may take.
PATIENCE_S = 900.0
#: Lines of a failed command's output that an error shows.
TAIL = 12
#: Of our environment a build sees these alone: our own settings hold secrets.
_KEPT = ("HOME", "PATH", "LANG", "LC_ALL", "TMPDIR", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE")
_PREFIXES = ("npm_config_", "NPM_CONFIG_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

#: ``build(directory, run)`` fills the directory; ``run(argv, cwd)`` gives a command's standard output and raises TaskFailed.
Run = Callable[[list[str], Path], str]
Build = Callable[[Path, Run], None]


def digest(paths: Iterable[tuple[str, Path]], *facts: str) -> str:
    """Of files by name and content, and of facts; 16 hexadecimal digits. Raises AutomationError where a file cannot be read."""
    total = hashlib.sha256()
    for fact in facts:
        total.update(f"{len(fact)}:{fact}".encode())
    for name, path in sorted(paths):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AutomationError(f"reading {path}", why=error.strerror or "", remedy="is the project's directory whole?") from error
        total.update(f"{len(name)}:{name}{len(content)}:".encode())
        total.update(content)
    return total.hexdigest()[:16]


def tree(directory: Path) -> list[tuple[str, Path]]:
    """The sources below a directory, without what tools leave there."""
    skipped = {"__pycache__", "node_modules"}
    files = (path for path in directory.rglob("*") if path.is_file() and not skipped & set(path.relative_to(directory).parts))
    return [(str(path.relative_to(directory)), path) for path in files]


def cached(name: str, key: str, build: Build, *, cache: Path = CACHE, patience_s: float = PATIENCE_S) -> Path:
    """The directory that ``build`` filled, now or earlier. Raises AutomationError, Busy or what ``build`` raises; then nothing is published."""
    final = cache / f"{name}-{key}"
    if final.is_dir():
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{name}.lock", name, patience_s) as lock:
            if final.is_dir():
                return final
            for rest in cache.glob(f".{name}.building-*"):
                shutil.rmtree(rest)
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}.building-", dir=cache))
            try:
                (scratch / "ware").mkdir(mode=0o755)
                build(scratch / "ware", lambda argv, cwd: _run(argv, cwd, lock, patience_s))
                _sync(scratch / "ware")
                (scratch / "ware").rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)  # what cannot go now goes before the next build
    except OSError as error:
        remedy = "free some space" if error.errno == 28 else "run the lab's preparation as root"
        raise AutomationError(f"building the lab's {name} in {cache}", why=error.strerror or str(error), remedy=remedy) from error
    return final


@contextlib.contextmanager
def _locked(path: Path, name: str, patience_s: float) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Busy(f"building the lab's {name}", why="somebody else has been building it for too long", remedy=f"see {path}") from error
            time.sleep(0.1)
        yield descriptor
    finally:
        os.close(descriptor)


def _run(argv: list[str], cwd: Path, lock: int, deadline_s: float) -> str:
    """The children die with us (setpriv) and hold the lock while they live."""
    what = f"lab: {' '.join(Path(part).name for part in argv[:2])}"
    tool = shutil.which(argv[0])
    if tool is None:
        raise AutomationError(
            what, why=f"there is no {argv[0]} here", remedy=f"install it (Debian: apt-get install {argv[0]}): playbooks/lab.yml does"
        )
    leash = shutil.which("setpriv")
    command = [*([leash, "--pdeathsig", "KILL"] if leash else []), tool, *argv[1:]]
    kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_PREFIXES)}
    try:
        done = subprocess.run(  # noqa: S603 - our own argv, no shell
            command, cwd=cwd, env=kept, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_s, pass_fds=(lock,), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TaskFailed(what, why=f"did not end within {deadline_s:g} s", remedy="is the package registry reachable?") from error
    if done.returncode != 0:
        text = (done.stderr or done.stdout).decode(errors="replace")
        why = f"status {done.returncode}:\n" + "\n".join(text.strip().splitlines()[-TAIL:])
        raise TaskFailed(what, why=why, remedy="is the package registry reachable, and the disk not full?")
    return done.stdout.decode(errors="replace")


def _sync(directory: Path) -> None:
    """A published directory is whole after a power cut, too."""
    for path in (*directory.rglob("*"), directory):
        if path.is_symlink():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
