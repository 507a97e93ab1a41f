"""What customers and operators may send. Every field is checked, unknown ones are refused by name."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationInfo, field_validator

from flows.domain.names import problem_with

#: A version or flavor: also a path component of the artifact server and a value in an inventory, so never more than this.
_WORD = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
#: 9999-12-31T23:59:59.999Z: a later time has no calendar form.
LAST_MS = 253_402_300_799_999
Word = Annotated[StrictStr, Field(pattern=_WORD)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RuntimeBody(Body):
    name: Word
    version: Word


class CreateBody(Body):
    """An order. ``ctype`` comes first: later fields depend on it. ``customer_id`` is for admins, who order for somebody."""

    ctype: Literal["game", "dev"]
    name: StrictStr
    flavor: Word
    version: Word
    memory_mb: Annotated[StrictInt, Field(ge=256, le=1_048_576)]
    cores: Annotated[StrictInt, Field(ge=1, le=256)]
    disk_gb: Annotated[StrictInt, Field(ge=1, le=65_536)]
    request_nonce: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
    runtimes: Annotated[list[RuntimeBody], Field(max_length=16)] | None = None
    enable_code_server: StrictBool | None = None
    customer_id: Annotated[StrictStr, Field(max_length=36)] | None = None

    @field_validator("name")
    @classmethod
    def _is_a_free_label(cls, value: str) -> str:
        problem = problem_with(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    @field_validator("runtimes", "enable_code_server")
    @classmethod
    def _developers_only(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get("ctype") == "game":
            raise ValueError("is for developer containers alone")
        return value

    @field_validator("enable_code_server")
    @classmethod
    def _not_yet(cls, value: bool | None) -> bool | None:
        """No role installs code-server, so such a container would never count as prepared."""
        if value:
            raise ValueError("is not available yet: leave it out")
        return value

    @field_validator("runtimes")
    @classmethod
    def _each_once(cls, value: list[RuntimeBody] | None) -> list[RuntimeBody] | None:
        names = [(r.name, r.version) for r in value or ()]
        if len(set(names)) != len(names):
            raise ValueError("names a runtime twice")
        return value

    def fingerprint(self) -> str:
        """SHA-256 over what is ordered: equal for a repeat, different for another order. A field left out equals its null and its empty value."""
        given = self.model_dump(exclude={"request_nonce", "customer_id"})
        wanted = {name: value for name, value in given.items() if value}
        return hashlib.sha256(json.dumps(wanted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class CustomerBody(Body):
    name: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    plan: Annotated[StrictStr, Field(min_length=1, max_length=64)]


class BrakeBody(Body):
    """``target`` is a host's name or a server's id; for everything it is left out."""

    scope: Literal["all", "host", "server"]
    target: Annotated[StrictStr, Field(max_length=64, validate_default=True)] = ""

    @field_validator("target")
    @classmethod
    def _named_where_needed(cls, value: str, info: ValidationInfo) -> str:
        if "scope" in info.data and (info.data["scope"] == "all") == bool(value):
            raise ValueError("names the host or the server, and nothing for all")
        return value


class PauseBody(BrakeBody):
    """``until`` in ms, at most the end of the year 9999; left out: until resumed."""

    reason: Annotated[StrictStr, Field(min_length=1, max_length=255)]
    until: Annotated[StrictInt, Field(gt=0, le=LAST_MS)] | None = None


class ResumeBody(BrakeBody):
    pass
