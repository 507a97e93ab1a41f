"""One real container for tests that need no fleet: made, driven and removed with the lab's own parts. Root and LXC."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flows.lab.lxc import Machines, clean, default_network
from flows.lab.substance import Ended
from flows.lab.world import LabContainer

PROJECT = Path(__file__).resolve().parents[2]
IMAGES = Path("/var/cache/zlh-lab/images")
T = TypeVar("T")


class Box:
    """A running container with systemd and SSH, and a web server on the bridge for what it fetches. ``close`` leaves nothing."""

    def __init__(self, directory: Path, vmid: int = 901) -> None:
        self.directory = directory
        self._loop = asyncio.new_event_loop()
        self.machines = Machines(directory / "lab", default_network(directory / "lab"), IMAGES)
        self.address = str(self.machines.network[10])
        net = f"name=eth0,bridge=vmbr0,ip={self.address}/{self.machines.network.prefixlen},gw={self.machines.address}"
        self.container = LabContainer(vmid, "lab", config={"hostname": "agt", "memory": 512, "swap": 0, "cores": 2, "net0": net})
        self._web: http.server.ThreadingHTTPServer | None = None

    def open(self) -> None:
        self._run(self.machines.open())
        self._run(self.machines.template(self.container, "game"))
        self.boot()
        self._admit()
        (self.directory / "web").mkdir()
        handler = functools.partial(_Quiet, directory=str(self.directory / "web"))
        self._web = http.server.ThreadingHTTPServer((str(self.machines.address), 0), handler)
        threading.Thread(target=self._web.serve_forever, daemon=True).start()

    def close(self) -> None:
        if self._web is not None:
            self._web.shutdown()
            self._web.server_close()
        self._run(self.machines.close())
        clean(self.directory / "lab")
        self._loop.close()

    def boot(self) -> None:
        self._run(self.machines.start(self.container))
        self.container.start()
        self.until("systemctl is-system-running --wait; systemctl is-active ssh", within_s=60)

    def shutdown(self) -> None:
        """By its init, as the host does it."""
        assert self._run(self.machines.shutdown(self.container, 60)), "it did not go down"
        self.container.stop()

    def execute(self, script: str, *, stdin: bytes = b"", timeout_s: float = 60) -> Ended:
        return self._run(self.machines.execute(self.container, ["sh", "-c", script], stdin=stdin, timeout_s=timeout_s))

    def sh(self, script: str, *, stdin: bytes = b"") -> str:
        """Output of a shell script that must succeed."""
        ended = self.execute(script, stdin=stdin)
        assert ended.code == 0, f"{script}: {ended.code} {ended.err.decode()}"
        return ended.out.decode().strip()

    def until(self, script: str, *, within_s: float = 30) -> str:
        """Polls until the script succeeds."""
        ends = time.monotonic() + within_s
        while (ended := self.execute(script)).code != 0:
            assert time.monotonic() < ends, f"{script}: {ended.out.decode()} {ended.err.decode()}"
            time.sleep(0.1)
        return ended.out.decode().strip()

    def put(self, path: str, content: bytes, mode: str = "0644") -> None:
        self.sh(f"mkdir -p $(dirname {path}) && cat > {path} && chmod {mode} {path}", stdin=content)

    def offer(self, name: str, content: bytes) -> str:
        """URL under which the container can fetch it."""
        assert self._web is not None
        (self.directory / "web" / name).write_bytes(content)
        return f"http://{self.machines.address}:{self._web.server_address[1]}/{name}"

    def play(self, playbook: str, variables: Mapping[str, object], *arguments: str) -> subprocess.CompletedProcess[str]:
        """``ansible-playbook`` over SSH with strict host keys; variables go by a private file."""
        extra = self.directory / "extra.json"
        extra.touch(mode=0o600)
        extra.write_text(json.dumps(variables))
        inventory = self.directory / "hosts.yml"
        host = {"ansible_host": self.address, "ansible_user": "root"}
        inventory.write_text(
            json.dumps({"zlh": {"hosts": {"box": host}, "children": {f"zlh_{kind}": {"hosts": {"box": {}}} for kind in ("game", "dev")}}})
        )
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_PRIVATE_KEY_FILE": str(self.directory / "id"),
            "ANSIBLE_SSH_COMMON_ARGS": f"-F {self.ssh_config}",
            "ANSIBLE_NOCOLOR": "1",
        }
        command = ["ansible-playbook", "-i", str(inventory), "-e", f"@{extra}", *arguments, str(PROJECT / "playbooks" / playbook)]
        return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment, timeout=300, check=False)

    @property
    def ssh_config(self) -> Path:
        path = self.directory / "ssh_config"
        path.write_text(
            f"Host *\n  IdentityFile {self.directory}/id\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n"
            f"  UserKnownHostsFile {self.directory}/known_hosts\n"
        )
        return path

    def _admit(self) -> None:
        key = self.directory / "id"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.put("/root/.ssh/authorized_keys", Path(f"{key}.pub").read_bytes(), "0600")
        self.until("test -s /etc/ssh/ssh_host_ed25519_key.pub")
        public = self.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")
        (self.directory / "known_hosts").write_text(f"{self.address} {public}\n")

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...
