"""``docs/settings.md``, made from the settings themselves; a test keeps the page true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from flows.settings import Settings, fields

HEAD = """# Settings

Made by `zlh config docs`; do not edit.

Each setting is an environment variable, or a line `KEY=value` of the file that `ZLH_ENV_FILE` names; the environment comes first.
A secret may be read from a file: `<VARIABLE>_FILE` names it. Names end in their unit: `_s` seconds, `_mb` MiB, `_gb` GiB.
An unknown `ZLH_*` variable is refused by name. `zlh config show --sources` prints what is in force and where it comes from.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(
        f"\n## {group}\n\n{_doc(group)}| variable | default | what |\n| --- | --- | --- |\n" + "".join(_rows(group)) for group in _groups()
    )


def _groups() -> list[str]:
    return list(Settings.model_fields)


def _doc(group: str) -> str:
    annotation = Settings.model_fields[group].annotation
    own = (annotation.__dict__.get("__doc__") or "").strip() if annotation is not None else ""
    return f"{own.replace('``', '`')}\n\n" if own else ""


def _rows(group: str) -> Iterator[str]:
    for variable, path, field in fields():
        if path.partition(".")[0] == group:
            secret = " *Secret.*" if field.annotation is SecretStr else ""
            yield f"| `{variable}` | {_default(field)} | {field.description}.{secret}{_bounds(field)} |\n".replace("..", ".")


def _default(field: Any) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(str(item) for item in value)
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value is None or value == "" else f"`{value}`" if not isinstance(value, Path) else f"`{value.as_posix()}`"


def _bounds(field: Any) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    said = [f"{words[name]} {limit:g}" for rule in field.metadata for name in words if (limit := getattr(rule, name, None)) is not None]
    return f" {', '.join(said).capitalize()}." if said else ""
