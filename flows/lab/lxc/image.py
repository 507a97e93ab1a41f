"""The base root file system: built once per recipe by debootstrap, from the mirror and with the key of the host's own apt.

``<images>/<digest>/root`` is complete where it exists: it is built beside, in ``.building-…``, under a lock, and published by a rename. A builder
that is killed takes debootstrap with it (a PID namespace that dies with its parent) and debootstrap's mounts (a mount namespace); the next
builder removes the remains and begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from flows.lab.lxc import aptsources, recipe
from flows.lab.lxc.programs import Programs, missing, tail
from flows.lab.substance import SubstanceError

BUILD_S = 1_800.0
_POLL_S = 0.2


def path(images: Path) -> Path:
    """Where the present recipe's root file system is, or will be."""
    return images.resolve() / recipe.digest() / "root"


async def ensure(images: Path, programs: Programs) -> Path:
    """The root file system, built where it is missing. Two that ask at once build once. Raises SubstanceError."""
    root = path(images)
    try:
        # Its programs are set-uid and nobody patches them: root alone gets there.
        await asyncio.to_thread(root.parent.parent.mkdir, 0o700, True, True)
        await asyncio.to_thread(root.parent.parent.chmod, 0o700)
        async with _lock(root.parent.parent / ".lock"):
            if not root.is_dir():
                await _build(root.parent, programs)
    except OSError as error:
        raise SubstanceError(f"base image in {images}: {error}") from error
    return root


@contextlib.asynccontextmanager
async def _lock(file: Path) -> AsyncIterator[None]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        async with asyncio.timeout(BUILD_S):
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_POLL_S)
        yield
    except TimeoutError:
        raise SubstanceError(f"base image: another lab holds {file} for more than {BUILD_S:g} s · end that lab") from None
    finally:
        os.close(descriptor)


async def _build(target: Path, programs: Programs) -> None:
    if lacking := missing(["debootstrap", "unshare"]):
        raise SubstanceError(f"base image: {', '.join(lacking)} is not installed · apt-get install debootstrap util-linux")
    for remains in target.parent.glob(".building-*"):
        await asyncio.to_thread(shutil.rmtree, remains)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        root = building / "root"
        await _debootstrap(root, building / "key.asc", programs)
        await asyncio.to_thread(recipe.furnish, root)
        await programs.do("sync", "-f", root, timeout_s=300)
        os.rename(building, target)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, building, ignore_errors=True))
        raise


async def _debootstrap(root: Path, key: Path, programs: Programs) -> None:
    source = aptsources.choose(await asyncio.to_thread(aptsources.host), recipe.SUITE)
    trust = [f"--keyring={aptsources.DEFAULT_KEYRING}"]
    if source.trusted:
        trust = ["--no-check-gpg"]  # as the host's administrator decided for this mirror
    elif source.signed_by.startswith("/"):
        trust = [f"--keyring={source.signed_by.split()[0]}"]
    elif "BEGIN PGP" in source.signed_by:
        await asyncio.to_thread(key.write_text, source.signed_by.strip() + "\n")
        trust = [f"--keyring={key}"]
    # Dies with its parent, in namespaces of its own: no process and no mount of it is left behind.
    inside = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(recipe.PACKAGES)}", *trust, recipe.SUITE, str(root), source.uri]
    ended = await programs.run(*inside, *command, timeout_s=BUILD_S, more=await _proxies(programs))
    if ended.code != 0:
        log = root / "debootstrap/debootstrap.log"
        detail = tail(log.read_bytes()[-2_000:]) if log.is_file() else ""
        why = f"{tail(ended.err) or tail(ended.out)} {detail}".strip()
        raise SubstanceError(f"base image: debootstrap of {recipe.SUITE} from {source.uri}: {why} · see that the host's apt works")


async def _proxies(programs: Programs) -> dict[str, str]:
    """The proxies that the host's apt uses, for debootstrap, which reads no apt configuration."""
    ended = await programs.run("apt-config", "shell", "http", "Acquire::http::Proxy", "https", "Acquire::https::Proxy", timeout_s=30)
    found = {}
    for word in shlex.split(ended.out.decode(errors="replace")) if ended.code == 0 else []:
        name, _, value = word.partition("=")
        if value and value != "DIRECT":
            found[f"{name}_proxy"] = value
    return found
