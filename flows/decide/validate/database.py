"""M1 without Proxmox: every rule over the rows themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flows.decide.validate import identity, leases, mend, states
from flows.decide.validate.identity import problem
from flows.domain.records import Limits, Records
from flows.domain.validation import Problem


def problems(records: Records, limits: Limits) -> tuple[Problem, ...]:
    """In the order of the rules; stable for the same records."""
    return (*identity.problems(records), *states.problems(records, limits), *leases.problems(records, limits), *_references(records))


def _references(records: Records) -> Iterator[Problem]:
    for orphan in records.orphans:
        rows = f"{orphan.count} row{'s' if orphan.count > 1 else ''} of {orphan.table}"
        says = f"{rows} whose {orphan.column} names no row of {orphan.refers_to}"
        key = {"nodes": "name", "plan_limits": "plan"}.get(orphan.refers_to, "id")
        missing = f"{orphan.column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {orphan.refers_to} r WHERE r.{key} = {orphan.table}.{orphan.column})"  # noqa: S608 - text for a person
        remedy = f"{mend.select(orphan.table, missing)}; restore what is missing, or delete them"
        yield problem("foreign_key", tuple(f"{orphan.table}:{key}" for key in orphan.keys), says, remedy)


def schema(at: str | None, head: str) -> Problem | None:
    """The migration head. Older or newer tables are read by no other rule."""
    if at == head:
        return None
    remedy = "zlh migrate" if at is None or at < head else "run the newer program, or restore the backup made before its upgrade"
    return problem(
        "migration_head", (f"alembic_version:{at or 'none'}",), f"the tables are at {at or 'no revision'}, this program needs {head}", remedy
    )
