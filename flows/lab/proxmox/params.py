"""Strict parameter verification, with the messages of PVE::JSONSchema.

A schema maps a parameter's name to a :class:`P`; ``net[n]`` stands for ``net0``, ``net1``, … Every value arrives as a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flows.lab.proxmox.errors import VERIFICATION_FAILED, PveError

_TRUE, _FALSE = frozenset({"1", "on", "yes", "true"}), frozenset({"0", "off", "no", "false"})
MISSING = "property is missing and it is not optional"
UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"


@dataclass(frozen=True)
class P:
    """One parameter. ``form`` normalises a value or raises ValueError with Proxmox's text."""

    kind: str = "string"
    optional: bool = True
    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    enum: tuple[str, ...] = ()
    form: Callable[[str], Any] | None = None

    def must(self) -> P:
        return replace(self, optional=False)


def node_name(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?", value):
        raise ValueError("invalid format - value does not look like a valid node name\n")
    return value


def dns_name(value: str) -> str:
    label = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
    if not re.fullmatch(rf"{label}(?:\.{label})*", value):
        raise ValueError("invalid format - value does not look like a valid DNS name\n")
    return value


def config_id(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_-]+", value):
        raise ValueError(f"invalid format - invalid configuration ID '{value}'\n")
    return value


def storage_id(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]", value):
        raise ValueError(f"invalid format - storage ID '{value}' contains illegal characters\n")
    return value


BOOL, TEXT, COUNT = P("boolean"), P(), P("integer", minimum=0)
NODE = P(form=node_name, optional=False)
VMID = P("integer", minimum=100, maximum=999_999_999, optional=False)
STORAGE = P(form=storage_id)
CONFIG_ID = P(form=config_id, max_length=40)


def boolean(value: str) -> bool:
    """Raises ValueError for what is neither."""
    lowered = value.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(f"type check ('boolean') failed - got '{value}'")


def _number(spec: P, value: str) -> float:
    pattern = r"[+-]?\d+" if spec.kind == "integer" else r"[+-]?\d+(\.\d+)?"
    if not re.fullmatch(pattern, value):
        raise ValueError(f"type check ('{spec.kind}') failed - got '{value}'")
    number = int(value) if spec.kind == "integer" else float(value)
    if spec.minimum is not None and number < spec.minimum:
        raise ValueError(f"value must have a minimum value of {spec.minimum:g}")
    if spec.maximum is not None and number > spec.maximum:
        raise ValueError(f"value must have a maximum value of {spec.maximum:.0f}")
    return number


def check(spec: P, value: str) -> Any:
    """The typed value. Raises ValueError."""
    if spec.kind == "boolean":
        return int(boolean(value))
    if spec.kind in ("integer", "number"):
        return _number(spec, value)
    if spec.max_length is not None and len(value) > spec.max_length:
        raise ValueError(f"value may only be {spec.max_length} characters long")
    if spec.enum and value not in spec.enum:
        raise ValueError(f"value '{value}' does not have a value in the enumeration '{', '.join(spec.enum)}'")
    return spec.form(value) if spec.form is not None else value


def _find(schema: Mapping[str, P], name: str) -> P | None:
    if name in schema:
        return schema[name]
    stem = re.sub(r"(0|[1-9]\d{0,2})$", "[n]", name)
    return schema.get(stem) if stem.endswith("[n]") else None


def verify(schema: Mapping[str, P], given: Mapping[str, str]) -> dict[str, Any]:
    """Typed values of what was given. Raises PveError 400 naming every wrong parameter at once."""
    errors: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, value in given.items():
        spec = None if name.endswith("[n]") else _find(schema, name)
        if spec is None:
            errors[name] = UNKNOWN
            continue
        try:
            values[name] = check(spec, value)
        except ValueError as error:
            errors[name] = str(error)
    for name, spec in schema.items():
        if not spec.optional and name not in given:
            errors[name] = MISSING
    if errors:
        raise PveError(400, VERIFICATION_FAILED, errors)
    return values
