"""``/usr/sbin/pct`` of a lab's node: hands its arguments and its own standard streams to the lab, and ends as the lab says.

A program by itself, for root inside the node's namespaces; standard library alone, and nothing of this project.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator

DESK = "/run/zlh-lab/desk"


def _failed(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 255


@contextlib.contextmanager
def _as_caller() -> Iterator[None]:
    """With the rights of whoever called sudo: ``push`` reads what that user may read."""
    os.setegid(int(os.environ.get("SUDO_GID", "0")))
    os.seteuid(int(os.environ.get("SUDO_UID", "0")))
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        return _failed("please run as root")
    streams = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
            streams.append(number)
        except OSError:
            streams.append(os.open(os.devnull, os.O_RDWR))
    if arguments[:1] == ["push"] and len(arguments) > 2 and not arguments[2].startswith("-"):
        try:
            with _as_caller():
                streams[0] = os.open(arguments[2], os.O_RDONLY)
        except OSError:
            return _failed(f"failed to open {arguments[2]} for reading")
    with socket.socket(socket.AF_UNIX) as desk:
        try:
            desk.connect(DESK)
            body = json.dumps({"arguments": arguments, "term": os.environ.get("TERM", "")}).encode()
            socket.send_fds(desk, [len(body).to_bytes(4, "big")], streams)
            desk.sendall(body)
            answer = b""
            while chunk := desk.recv(65536):
                answer += chunk
        except OSError as error:
            return _failed(f"the lab does not answer: {error}")
    if not answer:
        return _failed("the lab ended meanwhile")
    reply = json.loads(answer)
    sys.stdout.write(reply.get("out", ""))
    sys.stderr.write(reply.get("err", ""))
    return int(reply["code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
