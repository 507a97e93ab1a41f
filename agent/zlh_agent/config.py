"""What the agent is told: one TOML file of its own, with its tokens in it, read once by ``__main__``; and one about the game.

Every mistake is a :class:`ConfigError` that names the field; no value of a secret is in its text.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import stat
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: Characters. The controller's tokens have 43.
MIN_TOKEN = 32
_log = logging.getLogger(__name__)
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]{0,200}\.service")


class ConfigError(Exception):
    """The agent cannot run as configured; the text says which field and what to do."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """How the game is looked after, in seconds. ``backoff_s`` are the pauses before each start after a crash; after the last of them a person or
    the controller acts. ``settle_s`` of uptime make earlier crashes forgotten."""

    backoff_s: tuple[float, ...] = (30.0, 60.0, 120.0)
    settle_s: float = 30.0
    poll_s: float = 0.5
    ping_timeout_s: float = 2.0
    term_timeout_s: float = 20.0
    kill_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Game:
    """``/etc/zlh/game.toml``, written by the role that prepares the game: its unit, its console's FIFO and where it listens."""

    unit: str
    console: Path
    address: str
    port: int
    ready_timeout_s: float = 300.0
    stop_timeout_s: float = 75.0
    directory: Path = Path("/srv/game")


@dataclass(frozen=True, slots=True)
class Config:
    """``/etc/zlh/agent.toml``. Without certificate and key it serves plain HTTP, on loopback alone."""

    server_id: str
    kind: Literal["game", "dev"]
    bind: str
    token: str = field(repr=False)
    port: int = 18888
    previous_token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    state_dir: Path = Path("/var/lib/zlh-agent")
    max_body_bytes: int = 65_536
    game_file: Path = Path("/etc/zlh/game.toml")
    dev_file: Path = Path("/etc/zlh/dev.toml")
    supervision: Supervision = Supervision()


class NotPrepared(Exception):
    """There is no game yet, or its file says nothing; the text says which."""


class NoGame(NotPrepared):
    """There is no such file."""


def load(path: Path) -> Config:
    """Raises ConfigError, also where others can read the file: it holds the token. Fields that this version does not know are named and passed
    over: an older release must be able to come back under the configuration of a newer one."""
    private(path)
    raw = _known(_read(path), Config, "")
    if isinstance(raw.get("supervision"), dict):
        raw["supervision"] = _known(raw["supervision"], Supervision, "supervision.")
    config: Config = _build(Config, raw, "")
    _check(config)
    return config


def load_game(path: Path) -> Game:
    """Read at each order. Fields that this version does not know are passed over: role and agent are deployed apart. Raises NotPrepared."""
    try:
        game: Game = _build(Game, {name: value for name, value in _read(path).items() if name in get_type_hints(Game)}, "")
        _address("address", game.address)
        _port("port", game.port)
        if not _UNIT.fullmatch(game.unit):
            raise ConfigError(f"unit: {game.unit!r} is not the name of a service")
    except ConfigError as error:
        kind = NoGame if isinstance(error.__cause__, FileNotFoundError) else NotPrepared
        raise kind(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return game


def _known(raw: dict[str, Any], kind: Any, prefix: str) -> dict[str, Any]:
    for name in sorted(raw.keys() - get_type_hints(kind).keys()):
        _log.warning("unknown field %s%s is passed over", prefix, name)
    return {name: value for name, value in raw.items() if name in get_type_hints(kind)}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError; the first quotes no value
        raise ConfigError(f"{path} is not TOML: {error}") from error


def private(path: Path) -> None:
    """Raises ConfigError unless ``path`` is there and its owner's alone."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")


def _build(kind: Any, raw: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(kind)
    required = [f.name for f in fields(kind) if f.name not in raw and f.default is f.default_factory]  # both MISSING
    if required:
        raise ConfigError(f"missing field {', '.join(prefix + name for name in required)}")
    return kind(**{name: _value(hints[name], value, prefix + name) for name, value in raw.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    """``value`` as ``hint`` has it. Raises ConfigError naming the field."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
        origin = get_origin(hint)
    if origin is Literal and value in get_args(hint):
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], item, name) for item in value)
    if hint is Supervision and isinstance(value, dict):
        return _build(Supervision, value, f"{name}.")
    if hint is Path and isinstance(value, str) and Path(value).is_absolute():
        return Path(value)
    if hint is str and isinstance(value, str) and value and "\0" not in value:
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 86_400:
        return float(value)
    wanted = {Path: "an absolute path", str: "text that is not empty", int: "a whole number", float: "seconds, at least 0 and below a day"}
    raise ConfigError(
        f"{name}: must be {wanted.get(hint, 'one of ' + ', '.join(map(str, get_args(hint))) if origin is Literal else 'a list or table')}"
    )


def _check(config: Config) -> None:
    for name in ("token", "previous_token"):
        token = getattr(config, name)
        if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
            raise ConfigError(f"{name}: must be at least {MIN_TOKEN} printable characters without spaces")
    if len(config.server_id) > 128 or not config.server_id.isprintable():
        raise ConfigError("server_id: must be at most 128 printable characters")
    loopback = _address("bind", config.bind).is_loopback
    if (config.certificate is None) != (config.key is None):
        raise ConfigError("certificate and key: one is of no use without the other")
    if config.certificate is None and not loopback:
        raise ConfigError(f"bind: {config.bind} is not on loopback, and plain HTTP would carry the token in clear: set certificate and key")
    if config.key is not None:
        private(config.key)
    _port("port", config.port)
    if config.max_body_bytes < 1024:
        raise ConfigError("max_body_bytes: must be at least 1024")
    if not (config.supervision.poll_s and config.supervision.ping_timeout_s):
        raise ConfigError("supervision.poll_s and supervision.ping_timeout_s: must be above 0")


def _address(name: str, value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {value!r} is not a literal IP address") from error


def _port(name: str, value: int) -> None:
    if not 1 <= value <= 65_535:
        raise ConfigError(f"{name}: must be from 1 to 65535")
