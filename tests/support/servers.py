"""Real MariaDB, PostgreSQL and Redis servers of a test's own: new directory, free port on loopback, gone with the test's process.

Their defaults are wrong on purpose (time zone, isolation level, SQL mode, character set, collation): what the product needs it must set
itself. They are started without fsync unless ``durable``; a commit survives the death of the server then, but not that of the machine.
Where the tests run as root, servers run as the user that their package made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, ClassVar

import redis

#: Seconds for a server to answer after its start, and to end after it was told to.
START_S = 60.0
STOP_S = 30.0
PASSWORD = "of-a-test"
_PREFIX = "zlh-server-"


class Server(ABC):
    """One server, stopped until :meth:`start`. Not to be shared by threads: it dies with the thread that started it."""

    name: ClassVar[str]
    user: ClassVar[str]
    #: The signal that ends it in good order, and the one that follows its parent's death.
    ending: ClassVar[signal.Signals] = signal.SIGTERM
    orphaned: ClassVar[str] = "KILL"

    def __init__(self, *, durable: bool = False, extra: Mapping[str, str] | None = None) -> None:
        """``extra``: further options of the server, by their names in its own configuration."""
        self.durable, self.extra = durable, dict(extra or {})
        self.port = 0
        self._served = False  # it has answered once: its user is made, and its port stays
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        self._lock = (self.directory / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.data = self.directory / "data"
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owned = self.user if os.geteuid() == 0 else None
        self.directory.chmod(0o711)
        if self._owned:
            shutil.chown(self.directory, self._owned)

    @classmethod
    @abstractmethod
    def program(cls) -> str | None:
        """Path of the server's program, None where it is not installed."""

    @abstractmethod
    def prepare(self) -> None:
        """Fills ``data``, once."""

    @abstractmethod
    def command(self) -> tuple[list[str], str]:
        """What to run, and what it reads from its standard input."""

    @abstractmethod
    def answers(self) -> bool: ...

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns once it answers. After the first time on the same port, with the same data."""
        if not self.data.exists():
            self.prepare()
        end = time.monotonic() + START_S
        while True:
            self.port = self.port or _free_port()
            self._launch()
            while self._process is not None and self._process.poll() is None:
                if self.answers():
                    return
                if time.monotonic() > end:
                    self.kill()
                    raise TimeoutError(f"{self.name} did not answer within {START_S} s: {self.log()}")
                time.sleep(0.02)
            if time.monotonic() > end or not any(word in self.log().lower() for word in ("in use", "unable to lock", "lock file")):
                raise RuntimeError(f"{self.name} ended at its start: {self.log()}")
            time.sleep(0.2)  # its predecessor's children are still ending, or somebody else took the port
            if not self._served:
                self.port = 0

    def _launch(self) -> None:
        argv, stdin = self.command()
        # After a change of user the death signal must be set anew: setpriv does it in that order.
        wrapper = ["setpriv", f"--pdeathsig={self.orphaned}"]
        if self._owned:
            wrapper += [f"--reuid={self._owned}", f"--regid={self._owned}", "--init-groups"]
        with (self.directory / "log").open("ab") as log:
            log.truncate(0)
            self._process = subprocess.Popen(
                [*wrapper, *argv], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd=self.directory, env=_environment()
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(stdin.encode())
            self._process.stdin.close()

    def stop(self) -> None:
        """In good order; killed if that takes too long. Nothing to do if it is not running."""
        self._end(self.ending)

    def kill(self) -> None:
        """As the machine's memory killer would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, until :meth:`thaw`."""
        for pid in self._family():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        family = [process.pid, *children(process.pid)]
        with suppress(ProcessLookupError):
            process.send_signal(by)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        end = time.monotonic() + STOP_S
        for pid in family[1:]:
            while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
                time.sleep(0.01)

    def close(self) -> None:
        """Ends it and removes its directory."""
        self._end(signal.Signals[f"SIG{self.orphaned}"])
        self._lock.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What it said last."""
        return (self.directory / "log").read_text(errors="replace")[-2_000:]

    def _family(self) -> list[int]:
        return [self.pid, *children(self.pid)]

    def run(self, argv: list[str], stdin: str = "", *, check: bool = True) -> str:
        """A program of the server's package, as the server's user; its output. Raises RuntimeError with what it said."""
        user = [f"--reuid={self._owned}", f"--regid={self._owned}", "--init-groups"] if self._owned else []
        done = subprocess.run(
            ["setpriv", *user, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.directory,
            timeout=START_S,
            env=_environment(),
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{argv[0]}: {done.stderr.strip()[-2_000:] or done.stdout.strip()[-2_000:]}")
        return done.stdout if done.returncode == 0 else ""


class DatabaseServer(Server):
    """MariaDB or PostgreSQL: databases by name, all of them the one product user's."""

    driver: ClassVar[str]

    def url(self, database: str) -> str:
        return f"{self.driver}://zlh:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    @abstractmethod
    def sql(self, statement: str, database: str | None = None) -> str:
        """Run by the server's administrator: tab-separated rows without a head."""

    @abstractmethod
    def create(self, database: str) -> str:
        """A new, empty database (an old one of that name is dropped), as docs/databases.md says; its URL."""


class MariaDB(DatabaseServer):
    name, user, driver = "mariadb", "mysql", "mysql+asyncmy"

    @classmethod
    def program(cls) -> str | None:
        return shutil.which("mariadbd", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

    def _options(self) -> list[str]:
        wrong = {
            "default-time-zone": "+05:30",
            "transaction-isolation": "READ-UNCOMMITTED",
            "sql-mode": "ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT",
            "character-set-server": "latin1",
            "collation-server": "latin1_swedish_ci",
            "innodb-lock-wait-timeout": "1",
            "default-storage-engine": "MyISAM",
        }
        small = {"innodb-buffer-pool-size": "64M", "performance-schema": "OFF", "max-connections": "60", "innodb-log-file-size": "16M"}
        fast = {} if self.durable else {"innodb-flush-method": "nosync", "innodb-flush-log-at-trx-commit": "2", "innodb-doublewrite": "0"}
        return [f"--{k}={v}" for k, v in (wrong | small | fast | self.extra).items()]

    def prepare(self) -> None:
        fast = [] if self.durable else ["--innodb-flush-method=nosync"]
        # Each server removes at its start what it takes for its own leavings in the directory for temporary tables: none is shared.
        paths = [f"--datadir={self.data}", f"--tmpdir={self.directory}"]
        self.run(["mariadb-install-db", "--no-defaults", *paths, "--auth-root-authentication-method=normal", "--skip-test-db", *fast])

    def command(self) -> tuple[list[str], str]:
        program = self.program()
        assert program is not None
        paths = [f"--datadir={self.data}", f"--socket={self._socket}", f"--pid-file={self.directory / 'pid'}", f"--tmpdir={self.directory}"]
        return [program, "--no-defaults", *paths, "--bind-address=127.0.0.1", f"--port={self.port}", "--skip-name-resolve", *self._options()], ""

    @property
    def _socket(self) -> Path:
        return self.directory / "socket"

    def answers(self) -> bool:
        if not self._socket.exists() or not self.run(self._client(), "SELECT 1", check=False):
            return False
        if not self._served:
            self.sql(f"CREATE USER zlh@127.0.0.1 IDENTIFIED BY '{PASSWORD}'")
            self._served = True
        return True

    def _client(self) -> list[str]:
        return ["mariadb", "--no-defaults", "--batch", "--skip-column-names", "--user=root", f"--socket={self._socket}"]

    def sql(self, statement: str, database: str | None = None) -> str:
        return self.run([*self._client(), *([database] if database else [])], statement)

    def create(self, database: str) -> str:
        self.sql(
            f"DROP DATABASE IF EXISTS `{database}`; CREATE DATABASE `{database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;"
            f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES, TRIGGER ON `{database}`.* TO zlh@127.0.0.1"
        )
        return self.url(database)


class PostgreSQL(DatabaseServer):
    name, user, driver = "postgresql", "postgres", "postgresql+asyncpg"
    ending, orphaned = signal.SIGINT, "QUIT"  # its processes end at once, but tidily: they share memory

    @classmethod
    def program(cls) -> str | None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[-3]))
        return str(found[-1]) if found else shutil.which("postgres")

    def _tool(self, name: str) -> str:
        program = self.program()
        assert program is not None
        return str(Path(program).with_name(name))

    def prepare(self) -> None:
        self.run(
            [self._tool("initdb"), f"--pgdata={self.data}", "--no-sync", "--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256",
             "--encoding=UTF8", "--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]
        )  # fmt: skip

    def command(self) -> tuple[list[str], str]:
        wrong = {
            "timezone": "Asia/Kolkata",
            "default_transaction_isolation": "serializable",
            "datestyle": "German",
            "intervalstyle": "sql_standard",
            "lock_timeout": "1",
        }
        small = {"shared_buffers": "64MB", "max_connections": "60", "log_timezone": "UTC", "autovacuum": "off"}
        fast = {} if self.durable else {"fsync": "off", "full_page_writes": "off"}
        paths = {"unix_socket_directories": str(self.directory), "listen_addresses": "127.0.0.1", "port": str(self.port)}
        options = [f"--{k}={v}" for k, v in (wrong | small | fast | paths | self.extra).items()]
        return [self._tool("postgres"), "-D", str(self.data), *options], ""

    def answers(self) -> bool:
        if not self.run(self._client("postgres"), "SELECT 1", check=False):
            return False
        if not self._served:
            self.sql(f"CREATE ROLE zlh LOGIN PASSWORD '{PASSWORD}'")
            self._served = True
        return True

    def _client(self, database: str) -> list[str]:
        fixed = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--field-separator=\t", "--set=ON_ERROR_STOP=1"]
        return [self._tool("psql"), *fixed, "--username=postgres", f"--host={self.directory}", f"--port={self.port}", database]

    def sql(self, statement: str, database: str | None = None) -> str:
        return self.run(self._client(database or "postgres"), statement)

    def create(self, database: str) -> str:
        self.sql(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        self.sql(f"CREATE DATABASE \"{database}\" OWNER zlh ENCODING 'UTF8' TEMPLATE template0")
        return self.url(database)


class Redis(Server):
    name, user = "redis", "redis"

    @classmethod
    def program(cls) -> str | None:
        return shutil.which("redis-server")

    def prepare(self) -> None:
        self.data.mkdir()
        if self._owned:
            shutil.chown(self.data, self._owned)

    def command(self) -> tuple[list[str], str]:
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.data), "save": '""', "requirepass": PASSWORD, "daemonize": "no"}
        return [self.program() or "", "-"], "".join(f"{k} {v}\n" for k, v in (options | self.extra).items())

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """To be closed by the caller."""
        return redis.Redis.from_url(self.url)

    def answers(self) -> bool:
        with self.client() as client, suppress(redis.RedisError):
            return bool(client.ping())
        return False


DATABASES: Mapping[str, type[DatabaseServer]] = {"mariadb": MariaDB, "postgresql": PostgreSQL}


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Started, and gone at the end."""
    remove_abandoned()
    try:
        server.start()
        yield server
    finally:
        server.close()


def remove_abandoned() -> None:
    """Directories of tests that were killed: their servers died with them."""
    for directory in Path("/tmp").glob(f"{_PREFIX}*"):  # noqa: S108 - where they are made
        with suppress(OSError), (directory / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """Of a process that may be gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _environment() -> dict[str, str]:
    """Nothing of the developer's: PGHOST or MYSQL_PWD would lead elsewhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
