"""M5: exactly one of everything, and nothing of it left. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flows.domain.trial import Left, Made
from flows.domain.validation import Part, Problem


def made(found: Made) -> Iterator[Problem]:
    """One for each count that is not one."""
    operation = f"zlh operations show {found.operation_id}"
    counts: tuple[tuple[str, int | None, str, str], ...] = (
        ("record", found.records, f"servers:{found.server_id}", f"zlh servers show {found.server_id}"),
        ("job", found.operations, f"operations:{found.operation_id}", operation),
        ("run of the job", found.runs, f"attempts:{found.operation_id}", "zlh validate workers; " + operation),
        ("run in the engine", found.engine_runs, f"operations:{found.operation_id}", "zlh validate workers; zlh engine reset --yes"),
        ("container", found.containers, f"servers:{found.server_id}", "zlh validate database"),
        ("agent execution", found.deployments, f"journal:{found.operation_id}/deploy_agent/do", operation),
        ("alert", found.alerts, f"outbox:provisioned/{found.operation_id}", "zlh status"),
    )
    for what, count, object_, remedy in counts:
        if count is not None and count != 1:
            yield Problem(Part.PROVISIONING, "not_exactly_one", (object_,), f"{count} × {what} for one order of {found.name}", remedy)
    if found.agent:
        yield Problem(
            Part.PROVISIONING, "agent", (f"servers:{found.server_id}",), f"agent of {found.name}: {found.agent}", f"zlh explain {found.name}"
        )
    if found.alerts == 1 and found.delivered != 1:
        says = f"the alert that {found.name} is ready never reached its channel"
        yield Problem(Part.PROVISIONING, "alert_not_delivered", (f"outbox:provisioned/{found.operation_id}",), says, "zlh status; zlh doctor")


def left(found: Left) -> Iterator[Problem]:
    for object_, what, command in found.things:
        yield Problem(Part.PROVISIONING, "trace_left", (object_,), what, command)
