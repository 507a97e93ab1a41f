"""Which handler carries which action; operation repairs are transactions of their own (``operations.py``)."""

from __future__ import annotations

from collections.abc import Mapping

from flows.act.repairs.base import RepairHandler
from flows.act.repairs.container import DestroyContainer
from flows.act.repairs.edge import DeregisterProxy, PublishDns, RegisterProxy, RehydrateProxy, WithdrawDns
from flows.act.repairs.workload import SuspendWorkload
from flows.domain.finding import Action

HANDLERS: Mapping[Action, RepairHandler] = {
    handler.action: handler
    for handler in (
        PublishDns(), WithdrawDns(), RegisterProxy(), DeregisterProxy(), RehydrateProxy(), SuspendWorkload(), DestroyContainer(),
    )
}  # fmt: skip
