"""Operations: orders that change a server, carried by attempts through journaled steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from flows.domain.server import ContainerType


class OperationKind(StrEnum):
    PROVISION = "provision"
    DELETE = "delete"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DEPLOY_AGENT = "deploy_agent"
    RESTART_AGENT = "restart_agent"


class OperationState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPENSATING = "compensating"
    CLEANUP_REQUIRED = "cleanup_required"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Queue(StrEnum):
    """Work queues of the engine."""

    PROVISIONING = "provisioning"
    OPERATIONS = "operations"
    REPAIRS = "repairs"
    RECONCILE = "reconcile"


class AttemptState(StrEnum):
    """``unclaimed`` → ``submitting`` (a dispatcher took it) → ``submitted`` (the engine has it) → ``claimed`` (a run owns it) → ``ended``."""

    UNCLAIMED = "unclaimed"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    CLAIMED = "claimed"
    ENDED = "ended"


class StepName(StrEnum):
    CREATE_CONTAINER = "create_container"
    CONFIGURE = "configure"
    START_CONTAINER = "start_container"
    TRUST = "trust"
    DEPLOY_AGENT = "deploy_agent"
    PREPARE_WORKLOAD = "prepare_workload"
    START_WORKLOAD = "start_workload"
    PUBLISH_DNS = "publish_dns"
    REGISTER_PROXY = "register_proxy"
    ACTIVATE = "activate"
    DEREGISTER_PROXY = "deregister_proxy"
    UNPUBLISH_DNS = "unpublish_dns"
    STOP_WORKLOAD = "stop_workload"
    RESTART_WORKLOAD = "restart_workload"
    RESTART_AGENT = "restart_agent"
    DESTROY_CONTAINER = "destroy_container"
    RELEASE = "release"
    FINISH = "finish"


class Direction(StrEnum):
    DO = "do"
    UNDO = "undo"


class StepState(StrEnum):
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"


_S = StepName
_GAME_PROVISION = (
    _S.CREATE_CONTAINER, _S.CONFIGURE, _S.START_CONTAINER, _S.TRUST, _S.DEPLOY_AGENT,
    _S.PREPARE_WORKLOAD, _S.START_WORKLOAD, _S.PUBLISH_DNS, _S.REGISTER_PROXY, _S.ACTIVATE,
)  # fmt: skip
_EDGE = frozenset({_S.PUBLISH_DNS, _S.REGISTER_PROXY, _S.DEREGISTER_PROXY, _S.UNPUBLISH_DNS})

#: Steps of each kind of operation for a game server; a developer container does the same without the edge.
_STEPS: Mapping[OperationKind, tuple[StepName, ...]] = {
    OperationKind.PROVISION: _GAME_PROVISION,
    OperationKind.DELETE: (_S.DEREGISTER_PROXY, _S.UNPUBLISH_DNS, _S.STOP_WORKLOAD, _S.DESTROY_CONTAINER, _S.RELEASE),
    OperationKind.START: (_S.START_CONTAINER, _S.START_WORKLOAD, _S.PUBLISH_DNS, _S.REGISTER_PROXY, _S.FINISH),
    OperationKind.STOP: (_S.DEREGISTER_PROXY, _S.STOP_WORKLOAD, _S.FINISH),
    OperationKind.RESTART: (_S.DEREGISTER_PROXY, _S.RESTART_WORKLOAD, _S.PUBLISH_DNS, _S.REGISTER_PROXY, _S.FINISH),
    OperationKind.DEPLOY_AGENT: (_S.DEPLOY_AGENT, _S.FINISH),
    OperationKind.RESTART_AGENT: (_S.RESTART_AGENT, _S.FINISH),
}


def steps_of(kind: OperationKind, ctype: ContainerType) -> tuple[StepName, ...]:
    """The steps of an operation, in order."""
    steps = _STEPS[kind]
    return steps if ctype is ContainerType.GAME else tuple(s for s in steps if s not in _EDGE)


_O = OperationState
#: The only legal moves; anything else is refused and audited.
OPERATION_TRANSITIONS: Mapping[OperationState, frozenset[OperationState]] = {
    # A deletion that no run took goes to cleanup_required: it is tried again, never failed.
    _O.QUEUED: frozenset({_O.RUNNING, _O.CANCELLING, _O.COMPENSATING, _O.CLEANUP_REQUIRED, _O.CANCELLED, _O.FAILED}),
    _O.RUNNING: frozenset({_O.SUCCEEDED, _O.CANCELLING, _O.COMPENSATING, _O.CLEANUP_REQUIRED, _O.FAILED}),
    _O.CANCELLING: frozenset({_O.COMPENSATING, _O.CANCELLED, _O.CLEANUP_REQUIRED}),
    _O.COMPENSATING: frozenset({_O.FAILED, _O.CANCELLED, _O.CLEANUP_REQUIRED}),
    _O.CLEANUP_REQUIRED: frozenset({_O.COMPENSATING, _O.RUNNING, _O.FAILED, _O.CANCELLED}),
    _O.FAILED: frozenset({_O.QUEUED}),
    _O.SUCCEEDED: frozenset(),
    _O.CANCELLED: frozenset(),
}
#: States in which an operation still holds its server.
LIVE_STATES = frozenset({_O.QUEUED, _O.RUNNING, _O.CANCELLING, _O.COMPENSATING, _O.CLEANUP_REQUIRED})

#: Kinds that only go forward (a failure is ``cleanup_required``, tried again) or that have no undo at all.
FORWARD_ONLY = frozenset({OperationKind.DELETE})
NO_UNDO = frozenset({OperationKind.START, OperationKind.STOP, OperationKind.RESTART, OperationKind.DEPLOY_AGENT, OperationKind.RESTART_AGENT})

#: Which deployment carries a kind.
DEPLOYMENT_OF: Mapping[OperationKind, str] = {
    OperationKind.PROVISION: "provision",
    OperationKind.DELETE: "deprovision",
    OperationKind.START: "operate",
    OperationKind.STOP: "operate",
    OperationKind.RESTART: "operate",
    OperationKind.DEPLOY_AGENT: "deploy-agent",
    OperationKind.RESTART_AGENT: "operate",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One order. ``attempt`` is the number of its newest attempt, ``claimed`` how many attempts a run ever claimed
    in the present phase; ``undo_failures`` how many compensations failed."""

    id: str
    server_id: str
    kind: OperationKind
    state: OperationState
    queue: Queue
    actor: str
    attempt: int
    attempt_state: AttemptState
    attempt_at: int
    claimed: int
    created_at: int
    progress_at: int
    deadline_at: int
    started_at: int | None = None
    finished_at: int | None = None
    step: StepName | None = None
    step_deadline_at: int | None = None
    error: Mapping[str, str] | None = None
    params: Mapping[str, object] = field(default_factory=dict)
    cancel_requested: bool = False
    undo_failures: int = 0


@dataclass(frozen=True, slots=True)
class StepRow:
    """One line of the journal. ``upid`` is stored before the task is waited on."""

    operation_id: str
    step: StepName
    direction: Direction
    state: StepState
    attempt: int
    started_at: int
    deadline_at: int
    finished_at: int | None = None
    upid: str | None = None
    runs: int = 1
    detail: Mapping[str, object] = field(default_factory=dict)


def engine_key(generation: int, operation_id: str, attempt: int) -> str:
    """The engine's idempotency key. Keys never expire there, so one is never needed twice."""
    return f"{generation}:{operation_id}:{attempt}"
