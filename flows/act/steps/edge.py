"""Steps 8 and 9, and their opposites: DNS, then the proxy; games only. A backend that is not ready is never registered."""

from __future__ import annotations

from flows.act import edge
from flows.act.context import Context
from flows.act.policy import policy_of
from flows.act.steps.base import Effect, Step
from flows.decide.wanted import fqdn
from flows.domain.operation import OperationKind, StepName


class PublishDns(Step):
    """The *proxy's* address under the server's name, with an owner record; never the container's."""

    name = StepName.PUBLISH_DNS
    deadline_s = 120.0
    effect = Effect.PREREQUISITE
    skipped_when_suspended = True

    async def already_done(self, ctx: Context) -> bool:
        return await edge.dns_is_right(ctx.deps, ctx.server)

    async def do(self, ctx: Context) -> None:
        await edge.publish_dns(ctx.deps, ctx.server)

    async def undo(self, ctx: Context) -> None:
        if ctx.operation.kind is OperationKind.PROVISION:
            await edge.withdraw_dns(ctx.deps, fqdn(ctx.server, policy_of(ctx.deps.settings)), ctx.server.id)


class RegisterProxy(Step):
    """Sent again after an interruption, too: that it is registered says nothing of what may still be on its way."""

    name = StepName.REGISTER_PROXY
    deadline_s = 120.0
    effect = Effect.FENCED
    skipped_when_suspended = True

    async def do(self, ctx: Context) -> None:
        await edge.register(ctx.deps, ctx.server, ctx.token)

    async def undo(self, ctx: Context) -> None:
        await edge.deregister(ctx.deps, ctx.server.name, ctx.token)


class DeregisterProxy(Step):
    name = StepName.DEREGISTER_PROXY
    deadline_s = 120.0
    effect = Effect.FENCED

    async def do(self, ctx: Context) -> None:
        await edge.deregister(ctx.deps, ctx.server.name, ctx.token)


class UnpublishDns(Step):
    name = StepName.UNPUBLISH_DNS
    deadline_s = 120.0
    effect = Effect.PREREQUISITE

    async def do(self, ctx: Context) -> None:
        await edge.withdraw_dns(ctx.deps, fqdn(ctx.server, policy_of(ctx.deps.settings)), ctx.server.id)
