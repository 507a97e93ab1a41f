"""``roles/<role>/README.md``, made from the role's ``meta/argument_specs.yml``: ``python -m flows.cli.role_page roles/*``. A test keeps them true."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


def page(role: Path) -> str:
    """The role's README."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    return "".join(_lines(role.name, specs))


def _lines(name: str, specs: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {name}\n\nMade from `meta/argument_specs.yml` by `python -m flows.cli.role_page`; do not edit.\n"
    for entry, spec in specs.items():
        if entry != "main":
            yield f"\n## {entry}\n"
        yield f"\n{_sentence(spec.get('short_description', ''))}\n"
        for line in _paragraphs(spec.get("description")):
            yield f"\n{line}\n"
        if spec.get("options"):
            yield "\n| variable | type | default | what |\n| --- | --- | --- | --- |\n"
            yield from _rows(spec["options"], "")


def _rows(options: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, option in options.items():
        default = "*required*" if option.get("required") else f"`{_value(option['default'])}`" if "default" in option else ""
        kind = option.get("type", "str") + (f" of {option['elements']}" if "elements" in option else "")
        words = " ".join(_sentence(line) for line in _paragraphs(option.get("description")))
        choices = f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}." if "choices" in option else ""
        secret = " *Secret.*" if option.get("no_log") else ""
        yield f"| `{prefix}{name}` | {kind} | {default} | {words}{choices}{secret} |\n".replace("|  |", "| |")
        yield from _rows(option.get("options", {}), f"{prefix}{name}.")


def _paragraphs(text: Any) -> list[str]:
    lines = text if isinstance(text, list) else [text] if text else []
    return [str(line).strip().replace("|", "\\|") for line in lines]


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else f"{text}."


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        Path(given, "README.md").write_text(page(Path(given)))
