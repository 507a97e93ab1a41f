"""Every mistake in a configuration names its field and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from zlh_agent.config import ConfigError, NoGame, NotPrepared, Supervision, load, load_game

TOKEN = "t" * 43
GOOD = {"server_id": '"srv-1"', "kind": '"game"', "bind": '"127.0.0.1"', "token": f'"{TOKEN}"'}


def write(path: Path, mode: int = 0o600, extra: str = "", **changes: str | None) -> Path:
    values = {name: value for name, value in (GOOD | changes).items() if value is not None}
    path.write_text("\n".join(f"{name} = {value}" for name, value in values.items()) + f"\n{extra}")
    path.chmod(mode)
    return path


def test_what_is_not_said_has_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path / "agent.toml"))
    assert (config.port, config.state_dir, config.certificate) == (18888, Path("/var/lib/zlh-agent"), None)
    assert config.supervision == Supervision(backoff_s=(30.0, 60.0, 120.0), settle_s=30.0)
    assert TOKEN not in repr(config)


def test_the_supervision_is_set_and_what_is_unknown_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load(write(tmp_path / "agent.toml", extra="newer = 1\n[supervision]\nbackoff_s = [1, 2.5]\nyet = 2\n"))
    assert config.supervision.backoff_s == (1.0, 2.5)
    assert "unknown field newer" in caplog.text and "unknown field supervision.yet" in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token": '"short"'}, "token: must be at least 32"),
        ({"token": '"' + "t" * 40 + ' x"'}, "token: must be"),
        ({"previous_token": '"short"'}, "previous_token: must be"),
        ({"token": None}, "missing field token"),
        ({"kind": '"web"'}, "kind: must be one of game, dev"),
        ({"bind": '"localhost"'}, "bind: 'localhost' is not a literal IP address"),
        ({"bind": '"10.0.0.5"'}, "plain HTTP would carry the token in clear"),
        ({"port": "0"}, "port: must be from 1 to 65535"),
        ({"port": "true"}, "port: must be a whole number"),
        ({"state_dir": '"here"'}, "state_dir: must be an absolute path"),
        ({"certificate": '"/etc/x"'}, "certificate and key"),
        ({"max_body_bytes": "10"}, "max_body_bytes: must be at least 1024"),
        ({"server_id": '"' + "s" * 129 + '"'}, "server_id: must be at most 128"),
        ({"supervision": "{poll_s = 0}"}, "supervision.poll_s"),
        ({"supervision": "{backoff_s = [-1]}"}, "supervision.backoff_s: must be seconds"),
    ],
)
def test_a_mistake_names_its_field(tmp_path: Path, changes: dict[str, str | None], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path / "agent.toml", **changes))
    assert says in str(error.value) and TOKEN not in str(error.value)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        load(write(tmp_path / "agent.toml", mode=0o640))
    (tmp_path / "k").write_text("k")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load(write(tmp_path / "agent.toml", certificate=f'"{tmp_path}/k"', key=f'"{tmp_path}/k"'))


def test_a_file_that_is_gone_or_no_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "agent.toml")
    (tmp_path / "agent.toml").write_text("token = ")
    (tmp_path / "agent.toml").chmod(0o600)
    with pytest.raises(ConfigError, match="is not TOML"):
        load(tmp_path / "agent.toml")


def test_a_game_is_read(tmp_path: Path) -> None:
    path = tmp_path / "game.toml"
    path.write_text('unit = "zlh-game.service"\nconsole = "/run/x"\naddress = "127.0.0.1"\nport = 25565\nready_timeout_s = 7\nnewer = 1\n')
    game = load_game(path)
    assert (game.unit, game.ready_timeout_s, game.stop_timeout_s, game.directory) == ("zlh-game.service", 7.0, 75.0, Path("/srv/game"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('unit = "--help"', "unit: '--help' is not the name"),
        ('unit = "-x.service"', "is not the name of a service"),
        ('unit = "a/b.service"', "is not the name of a service"),
        ("port = 70000", "port: must be from"),
        ('address = "localhost"', "address: 'localhost'"),
        ('console = "x"', "console: must be an absolute path"),
    ],
)
def test_a_game_that_cannot_be_is_not_prepared(tmp_path: Path, line: str, says: str) -> None:
    values = {"unit": '"g.service"', "console": '"/run/x"', "address": '"127.0.0.1"', "port": "1"}
    name, _, value = line.partition(" = ")
    path = tmp_path / "game.toml"
    path.write_text("\n".join(f"{key} = {text}" for key, text in (values | {name: value}).items()))
    with pytest.raises(NotPrepared) as error:
        load_game(path)
    assert says in str(error.value)


def test_no_game_is_not_prepared_and_told_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NoGame, match="No such file"):
        load_game(tmp_path / "game.toml")
    (tmp_path / "game.toml").mkdir()
    with pytest.raises(NotPrepared) as error:
        load_game(tmp_path / "game.toml")
    assert not isinstance(error.value, NoGame)
