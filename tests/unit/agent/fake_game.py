"""A game for tests: answers the Server List Ping, reads its console, and misbehaves on demand. ``fake_game.py PORT DIRECTORY``.

In the directory ``mode`` holds words: ``deaf`` (ignores ``stop``), ``stubborn`` (ignores TERM, too), ``mute`` (never listens), ``dies`` (ends with
code 3 before it listens), ``oom`` (as ``dies``, with Java's words), ``hungry`` (takes all the memory there is). It writes ``saved`` when it stopped
gracefully and ``starts`` at each start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path


def main() -> None:
    port, directory = int(sys.argv[1]), Path(sys.argv[2])
    with (directory / "starts").open("a") as file:
        file.write("x")
    mode = (directory / "mode").read_text().split() if (directory / "mode").exists() else []
    print("Starting minecraft server", flush=True)
    if "stubborn" in mode:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "oom" in mode:
        print("java.lang.OutOfMemoryError: Java heap space", flush=True)
    if "oom" in mode or "dies" in mode:
        os._exit(3)
    hoard = []
    while "hungry" in mode:
        hoard.append(b"x" * 16_777_216)
    if "mute" not in mode:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        print("Done (0.1s)!", flush=True)
    for line in sys.stdin:
        if line.strip() == "stop" and "deaf" not in mode:
            (directory / "saved").write_text("saved")
            return


def serve(listener: socket.socket) -> None:
    text = json.dumps({"version": {"name": "x", "protocol": 754}, "players": {"max": 20, "online": 3}}).encode()
    body = b"\x00" + bytes([len(text)]) + text
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1024)
            connection.sendall(bytes([len(body)]) + body)


if __name__ == "__main__":
    main()
