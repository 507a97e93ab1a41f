"""What is missing is named; nothing is taken on trust."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from zlh_agent import systemd
from zlh_agent.config import Config
from zlh_agent.provisioned import EULA, MARK, Provisioned
from zlh_agent.unit import UnitError

GAME = 'unit = "zlh-game.service"\nconsole = "{0}/console"\naddress = "127.0.0.1"\nport = 25565\ndirectory = "{0}/game"\n'
DEV = 'user = "{1}"\nworkspace = "{0}/workspace"\ncode_server = true\n[[runtimes]]\nname = "node"\nversion = "22.1.0"\n'
ME = __import__("pwd").getpwuid(os.getuid()).pw_name


class Looked(Provisioned):
    """systemd's answers are the test's to say."""

    units: frozenset[str] = frozenset()

    async def _unit(self, name: str, value: str, *units: str) -> bool:
        return bool(self.units & set(units))


def looked(tmp_path: Path, kind: str, *units: str) -> Looked:
    config = Config("srv-1", kind, "127.0.0.1", "t" * 43, game_file=tmp_path / "game.toml", dev_file=tmp_path / "dev.toml")  # type: ignore[arg-type]
    made = Looked(config, tmp_path / "runtimes")
    made.units = frozenset(units)
    return made


def whole_game(tmp_path: Path) -> None:
    (tmp_path / "game").mkdir()
    (tmp_path / "game.toml").write_text(GAME.format(tmp_path))
    (tmp_path / "game" / "server.jar").write_bytes(b"")
    (tmp_path / "game" / "eula.txt").write_text("# by the order\neula=true\n")
    os.mkfifo(tmp_path / "console")


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


async def test_a_whole_game_misses_nothing(tmp_path: Path) -> None:
    whole_game(tmp_path)
    assert await looked(tmp_path, "game", "zlh-game.service").missing() == []


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda d: (d / "game.toml").unlink(), "game.toml"),
        (lambda d: (d / "game" / "server.jar").unlink(), "jar: "),
        (lambda d: (d / "game" / "eula.txt").write_text("eula=false\n"), "eula: "),
        (lambda d: (d / "game" / "eula.txt").write_bytes(b"\xff"), "eula: "),
        (lambda d: (d / "console").unlink(), "console: "),
        (lambda d: ((d / "console").unlink(), (d / "console").write_text("")), "is no FIFO"),
    ],
)
async def test_what_a_game_lacks_is_named(tmp_path: Path, spoil: Any, named: str) -> None:
    whole_game(tmp_path)
    spoil(tmp_path)
    found = await looked(tmp_path, "game", "zlh-game.service").missing()
    assert len(found) == 1 and named in found[0]


@pytest.mark.parametrize(
    "trap",
    [
        lambda eula: os.mkfifo(eula),
        lambda eula: eula.symlink_to("/dev/zero"),
        lambda eula: (eula.with_name("real").write_text("eula=true\n"), eula.symlink_to("real")),
        lambda eula: eula.mkdir(),
        lambda eula: eula.write_text("#" * EULA + "\neula=true\n"),
        _sparse,
    ],
    ids=["fifo", "endless", "link", "directory", "long", "sparse"],
)
@pytest.mark.timeout(10)
async def test_what_the_game_user_puts_in_place_of_the_eula_neither_blocks_nor_fills_memory(tmp_path: Path, trap: Any) -> None:
    whole_game(tmp_path)
    (tmp_path / "game" / "eula.txt").unlink()
    trap(tmp_path / "game" / "eula.txt")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**33, hard))  # what reads without end fails here, and not the machine
    try:
        found = await looked(tmp_path, "game", "zlh-game.service").missing()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert found == [f"eula: {tmp_path}/game/eula.txt"]


async def test_a_game_needs_its_unit(tmp_path: Path) -> None:
    whole_game(tmp_path)
    assert await looked(tmp_path, "game").missing() == ["unit: zlh-game.service"]


async def test_while_systemd_says_nothing_its_last_answer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_game(tmp_path)
    config = Config("srv-1", "game", "127.0.0.1", "t" * 43, game_file=tmp_path / "game.toml")
    answers: list[str | None] = [None, "not-found", None, "loaded", None]

    async def run(*command: str) -> tuple[int, str, str]:
        answer = answers.pop(0)
        if answer is None:
            raise UnitError("systemctl show: no answer within 20 s")
        return 0, f"LoadState={answer}\n", ""

    monkeypatch.setattr(systemd, "run", run)
    found, seen = Provisioned(config), []
    while answers:
        seen.append(bool(await found.missing()))
        found.forget()
    assert seen == [False, True, True, False, False]


async def test_a_developer_container(tmp_path: Path) -> None:
    (tmp_path / "dev.toml").write_text(DEV.format(tmp_path, ME))
    assert await looked(tmp_path, "dev").missing() == [f"workspace: {tmp_path}/workspace", "sshd", "runtime: node 22.1.0", "code-server"]
    (tmp_path / "workspace").mkdir()
    (tmp_path / "runtimes" / "node" / "22.1.0").mkdir(parents=True)
    (tmp_path / "runtimes" / "node" / "22.1.0" / "half").write_text("an archive that is still being unpacked")
    assert await looked(tmp_path, "dev", "ssh.socket", "code-server.service").missing() == ["runtime: node 22.1.0"]
    (tmp_path / "runtimes" / "node" / "22.1.0" / MARK).write_text("x")
    assert await looked(tmp_path, "dev", "ssh.socket", "code-server.service").missing() == []


async def test_without_a_description_it_is_what_every_developer_has(tmp_path: Path) -> None:
    found = await looked(tmp_path, "dev", "ssh.service").missing()
    assert "workspace: /home/dev/workspace" in found or found == []


async def test_what_was_missing_is_not_remembered_for_long(tmp_path: Path) -> None:
    found = looked(tmp_path, "game", "zlh-game.service")
    assert await found.missing()
    whole_game(tmp_path)
    assert await found.missing(), "an answer speaks for some seconds"
    found.forget()
    assert await found.missing() == []
