"""Argument specs of roles, checked by Ansible's own validator, as ``validate_argument_spec`` would at the start of each role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator


class ProjectError(Exception):
    """The project lacks or garbles something that a play needs; the text is for people."""


def load_yaml(path: Path) -> Any:
    """Raises ProjectError where the file is not YAML."""
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProjectError(f"{path.parent.name}/{path.name} is not YAML: {error}") from error


def role_spec(roles_dir: Path, role: str) -> dict[str, dict[str, Any]]:
    """The options of entry point ``main``. A role without specs is refused: the lab could check nothing."""
    for name in ("argument_specs.yml", "argument_specs.yaml"):
        path = roles_dir / role / "meta" / name
        if path.is_file():
            specs = load_yaml(path)
            try:
                options = specs["argument_specs"]["main"].get("options") or {}
            except (TypeError, KeyError, AttributeError):
                raise ProjectError(f"roles/{role}/meta/{name} has no argument_specs.main") from None
            return {str(key): dict(value or {}) for key, value in options.items()}
    raise ProjectError(f"roles/{role} has no meta/argument_specs.yml")


def role_defaults(roles_dir: Path, role: str) -> dict[str, Any]:
    """``defaults/main.yml``: they count as given when Ansible validates."""
    path = roles_dir / role / "defaults" / "main.yml"
    return dict(load_yaml(path) or {}) if path.is_file() else {}


def problems(roles_dir: Path, roles: Sequence[str], variables: Mapping[str, object]) -> list[str]:
    """What is wrong with ``variables`` for ``roles``: missing, mistyped, not among the choices, or unknown under a role's prefix."""
    found: list[str] = []
    known: set[str] = set()
    for role in roles:
        spec = role_spec(roles_dir, role)
        known |= spec.keys()
        given = {key: value for key, value in variables.items() if key in spec}
        for key, value in role_defaults(roles_dir, role).items():
            if key in spec and key not in given:
                spec[key].pop("required", None)  # given by the role itself; a template's value is known on the host alone
                if "{{" not in str(value):
                    given[key] = value
        for option in spec.values():
            option.pop("default", None)  # documentation only: Ansible does not set a role's variables from it
        found.extend(f"{role}: {message}" for message in ArgumentSpecValidator(spec).validate(given).error_messages)
    found.extend(
        f"{owner}: {name} is not among its arguments"
        for name in sorted(variables.keys() - known)
        if (owner := next((role for role in roles if name.startswith(f"{role}_")), None))
    )
    return found
