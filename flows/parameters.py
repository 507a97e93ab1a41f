"""Types of deployment parameters: ids, enums and bounded numbers; never a path, a host pattern or a secret."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

OperationId = Annotated[
    str, Field(title="Operation", description="Id of the operation (a UUID)", pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
]
ReviewId = Annotated[
    str, Field(title="Review", description="Id of the review (a UUID): zlh reviews", pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
]
Approver = Annotated[str, Field(title="Approver", description="Who approves: a name for the audit", pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,47}$")]
Attempt = Annotated[int, Field(title="Attempt", description="Number of the attempt; every submission has its own", ge=1, le=1_000_000)]
Generation = Annotated[int, Field(title="Generation", description="Generation of the database that ordered the run", ge=0, le=2**53)]
