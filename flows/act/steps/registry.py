"""Which class carries which step."""

from __future__ import annotations

from collections.abc import Mapping

from flows.act.steps.base import Step
from flows.act.steps.container import Configure, StartContainer
from flows.act.steps.create import CreateContainer
from flows.act.steps.destroy import DestroyContainer
from flows.act.steps.edge import DeregisterProxy, PublishDns, RegisterProxy, UnpublishDns
from flows.act.steps.final import Activate, Finish, Release
from flows.act.steps.software import DeployAgent, PrepareWorkload, RestartAgent, Trust
from flows.act.steps.workload import RestartWorkload, StartWorkload, StopWorkload
from flows.domain.operation import StepName

STEPS: Mapping[StepName, Step] = {
    step.name: step
    for step in (
        CreateContainer(), Configure(), StartContainer(), Trust(), DeployAgent(), PrepareWorkload(), StartWorkload(), PublishDns(),
        RegisterProxy(), Activate(), DeregisterProxy(), UnpublishDns(), StopWorkload(), RestartWorkload(), DestroyContainer(),
        Release(), Finish(), RestartAgent(),
    )
}  # fmt: skip
