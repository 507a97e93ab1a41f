"""What a step is."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from flows.act.context import Context
from flows.domain.operation import StepName
from flows.state.database import Tx


class Effect(StrEnum):
    """How an effect outside the database is kept from arriving late: named at each step's definition."""

    FENCED = "fenced"  # the receiver durably refuses lower lease tokens
    PREREQUISITE = "prerequisite"  # DNS UPDATE with a prerequisite on the value seen
    CONVERGENT = "convergent"  # a PUT or DELETE that says the same however often it arrives
    LEASED = "leased"  # a Proxmox call that ends under the lease
    HELD_OPEN = "held_open"  # a playbook that dies with its supervisor's pipe
    NONE = "none"  # the database alone


class Step:
    """``do`` may be called again after an interruption, but only if ``already_done`` said no. ``deadline_s`` bounds it, waiting included."""

    name: ClassVar[StepName]
    deadline_s: ClassVar[float]
    effect: ClassVar[Effect]
    #: Left out while the customer is suspended: the server is finished without starting.
    skipped_when_suspended: ClassVar[bool] = False

    def left_out(self, ctx: Context) -> bool:
        return self.skipped_when_suspended and ctx.suspended

    def limit_s(self, ctx: Context) -> float:
        """Its deadline for this operation, scaled as the settings say."""
        return self.deadline_s * ctx.deps.settings.timing.step_factor

    async def already_done(self, ctx: Context) -> bool:
        """Asked of the world, not of memory. Raises Temporary while the world gives no clear answer."""
        return False

    async def do(self, ctx: Context) -> None:
        raise NotImplementedError

    async def undo(self, ctx: Context) -> None:
        """Idempotent; nothing to undo by default."""


class FinalStep(Step):
    """Ends its operation: everything happens in the transaction that also writes the journal, so a death leaves nothing half done."""

    deadline_s = 120.0  #: longer than a lease and a sweep: a run that died here is resumed, not given up with everything done
    effect = Effect.NONE

    async def prepare(self, ctx: Context) -> None:
        """Reads the world before the transaction, where a decision depends on it."""

    async def commit(self, ctx: Context, tx: Tx) -> None:
        raise NotImplementedError

    async def do(self, ctx: Context) -> None:
        raise AssertionError("a final step commits")
