"""Where settings come from: the environment over the env file that ``ZLH_ENV_FILE`` names. Imports nothing heavy.

Called by :mod:`flows.settings`, and by the command line's listings, which need one setting and must answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flows.errors import MisconfiguredSetting

PREFIX = "ZLH_"
#: Read by the command line itself, not part of the settings.
META = frozenset({"ZLH_ENV_FILE"})


def read_env_file(path: Path) -> dict[str, str]:
    """``KEY=value`` lines; blank lines and ``#`` comments are skipped; one pair of quotes is removed. Raises MisconfiguredSetting."""
    values: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MisconfiguredSetting("ZLH_ENV_FILE", why=str(error), remedy="name a readable file or unset it") from error
    except UnicodeDecodeError as error:
        raise MisconfiguredSetting("ZLH_ENV_FILE", why=f"{path} is no UTF-8 text: {error.reason}", remedy="name a file of KEY=value lines") from None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, separator, value = line.partition("=")
        if not separator:
            raise MisconfiguredSetting(f"{path}:{number}", why="is not KEY=value", remedy="correct the line")
        values[key.strip()] = value.strip().strip("\"'")
    return values


def merged(environ: Mapping[str, str]) -> dict[str, str]:
    """Every ``ZLH_*`` variable, the environment's before the env file's. Raises MisconfiguredSetting."""
    nearer = {key: value for key, value in environ.items() if key.startswith(PREFIX)}
    values = read_env_file(Path(environ["ZLH_ENV_FILE"])) if environ.get("ZLH_ENV_FILE") else {}
    return {key: value for key, value in values.items() if not _said_by(nearer, key)} | nearer


def _said_by(nearer: Mapping[str, str], key: str) -> bool:
    """Whether a nearer layer says the same variable by its other name, with ``_FILE`` or without."""
    return f"{key}_FILE" in nearer or key.removesuffix("_FILE") in nearer


def value_of(variable: str, raw: str) -> str:
    """What a variable says; for one that ends in ``_FILE``, what that file holds. Raises MisconfiguredSetting."""
    if not variable.endswith("_FILE"):
        return raw
    try:
        return Path(raw).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise MisconfiguredSetting(variable, why=str(error), remedy="name a file that this user can read") from error
    except UnicodeDecodeError as error:  # without its cause, which holds the file's content
        raise MisconfiguredSetting(variable, why=f"{raw} is no UTF-8 text: {error.reason}", remedy="name a file that holds the value alone") from None
