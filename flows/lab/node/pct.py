"""``/usr/sbin/pct`` of a lab's node: hands its arguments and its own standard streams to the lab, and ends as the lab says.

A terminal cannot be handed on, since it belongs to one session: the lab gets a terminal of its own, and what passes is carried between the
two. A program by itself, for root inside the node's namespaces; standard library alone, and nothing of this project.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

DESK = "/run/zlh-lab/desk"
CHUNK = 65_536


def _failed(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 255


@contextlib.contextmanager
def _as_caller() -> Iterator[None]:
    """With the rights of whoever called sudo: ``push`` reads what that user may read."""
    group, groups = int(os.environ.get("SUDO_GID", "0")), os.getgroups()
    os.setgroups([group])
    os.setegid(group)
    os.seteuid(int(os.environ.get("SUDO_UID", "0")))
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _streams() -> list[int]:
    found = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
            found.append(number)
        except OSError:
            found.append(os.open(os.devnull, os.O_RDWR))
    return found


def _resize(master: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))


@contextlib.contextmanager
def _terminal(streams: list[int]) -> Iterator[int | None]:
    """Puts another terminal into ``streams`` where they are one, and gives its other end; ours is raw meanwhile."""
    if not os.isatty(0):
        yield None
        return
    master, slave = pty.openpty()
    _resize(master)
    signal.signal(signal.SIGWINCH, lambda *_: _resize(master))
    streams[:] = [slave if os.isatty(stream) else stream for stream in streams]
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield master
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _carry(master: int, desk: socket.socket) -> bytes:
    """Carries between the two terminals until the lab has answered and nothing more comes. Returns the answer."""
    answer, watched, answered = b"", [0, master, desk.fileno()], False
    while not answered or master in watched:
        ready, _, _ = select.select(watched, [], [])
        for source in ready:
            try:
                data = desk.recv(CHUNK) if source == desk.fileno() else os.read(source, CHUNK)
            except OSError:  # the far end of the terminal is closed
                data = b""
            if source == desk.fileno():
                answer, answered = answer + data, not data
            elif data:
                _write(1 if source == master else master, data)
            if not data:
                watched.remove(source)
    return answer


def _collect(desk: socket.socket) -> bytes:
    answer = b""
    while chunk := desk.recv(CHUNK):
        answer += chunk
    return answer


def _ask(arguments: list[str], streams: list[int]) -> bytes:
    with socket.socket(socket.AF_UNIX) as desk, _terminal(streams) as master:
        desk.connect(DESK)
        body = json.dumps({"arguments": arguments, "term": os.environ.get("TERM", "")}).encode()
        socket.send_fds(desk, [len(body).to_bytes(4, "big")], streams)
        desk.sendall(body)
        if master is None:
            return _collect(desk)
        for stream in {stream for stream in streams if stream > 2}:
            os.close(stream)
        return _carry(master, desk)


def main(arguments: list[str]) -> int:
    streams = _streams()
    if arguments[:1] == ["push"] and len(arguments) > 2 and not arguments[2].startswith("-"):
        try:
            with _as_caller():
                streams[0] = os.open(arguments[2], os.O_RDONLY)
        except OSError:
            return _failed(f"failed to open {arguments[2]} for reading")
    try:
        answer = _ask(arguments, streams)
    except OSError as error:
        return _failed(f"the lab does not answer: {error}")
    if not answer:
        return _failed("the lab ended meanwhile")
    reply: dict[str, Any] = json.loads(answer)
    sys.stdout.write(reply.get("out", ""))
    sys.stderr.write(reply.get("err", ""))
    return int(reply["code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
