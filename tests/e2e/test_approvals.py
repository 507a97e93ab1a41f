"""What only a person may allow, with everything real between the finding and the effect: schedule, worker, deployment ``approve``, Proxmox' face."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import select

from flows.cli.demo.stage import Stage
from flows.cli.stack import Stack
from flows.clients.engine import PrefectEngine
from flows.clients.proxmox import ProxmoxClient
from flows.domain.finding import Action, Decision, Review
from flows.domain.operation import Queue
from flows.domain.ports import CloneSpec, ContainerSpec
from flows.domain.sources import OUR_TAG
from flows.state import nodes, reviews
from flows.state import tables as t
from tests.support.stacks import ScratchStack, acting, standing, zlh

pytestmark = [pytest.mark.services, pytest.mark.soak, pytest.mark.timeout(600)]

ORPHAN = 777


class OftenSwept(ScratchStack):
    """With the normal patience of everything else: a run may have to wait for a busy machine."""

    def _own_values(self) -> dict[str, str]:
        return super()._own_values() | {"ZLH_TIMING__SWEEP_S": "20"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standing(OftenSwept(tmp_path_factory.mktemp("approvals"), fleet="sim", say=lambda _: None)) as stack:
        yield stack


@pytest.fixture
async def stage(stack: Stack) -> AsyncIterator[Stage]:
    async with acting(stack, patience=3.0) as stage:
        yield stage


async def orphaned(stage: Stage) -> None:
    """A container of ours that no record names, as a database restored from an older copy leaves one."""
    async with stage.database.read() as tx:
        node = (await nodes.list_(tx))[0]
    proxmox = ProxmoxClient(stage.settings.proxmox)
    try:
        clone = CloneSpec(node.name, node.templates["fabric"], ORPHAN, node.storage, "late", "")
        await proxmox.wait(await proxmox.clone(clone), 60)
        await proxmox.configure(node.name, ORPHAN, ContainerSpec(frozenset({OUR_TAG, "game"}), 1, 512, 8, node.bridge, "dhcp", ""))
    finally:
        await proxmox.close()


async def asked(stage: Stage) -> Review:
    async def waits() -> Review | None:
        async with stage.database.read() as tx:
            return next((r for r in await reviews.pending(tx) if r.action is Action.DESTROY_CONTAINER), None)

    return await stage.until("the review asked", waits, 60)


async def approved(stage: Stage, review_id: str, approver: str) -> str:
    """A run of the deployment, as Prefect's page starts one; its end."""
    engine, key = PrefectEngine(stage.settings.engine), f"approve:{approver}"
    try:
        await engine.submit("approve", key, {"review_id": review_id, "approver": approver}, Queue.REPAIRS)

        async def ended() -> str | None:
            run = (await engine.runs([key])).get(key)
            return run.state if run is not None and run.finished else None

        return await stage.until(f"{approver}'s run ended", ended, 60)
    finally:
        await engine.close()


async def destructions(stage: Stage) -> list[dict[str, Any]]:
    """Orders to destroy it that Proxmox got."""
    state = await stage.lab_call("GET", "/state")
    return [call for call in state["parts"]["proxmox"]["writes"] if call["call"].startswith("DELETE ") and call["call"].endswith(f"/lxc/{ORPHAN}")]


async def present(stage: Stage) -> bool:
    return str(ORPHAN) in (await stage.lab_call("GET", "/state"))["containers"]


async def test_an_orphan_is_destroyed_once_and_only_as_approved(stack: Stack, stage: Stage) -> None:
    status, said = await zlh(stack, "repair-level", "set", "3", "--yes")
    assert status == 0, said
    await orphaned(stage)
    review = await asked(stage)
    status, said = await zlh(stack, "reviews", "--json")
    assert [json.loads(line)["id"] for line in said.splitlines()] == [review.id], said
    assert (await present(stage), await destructions(stage)) == (True, []), "it waits for a person"
    assert await approved(stage, review.id, "anna") == "completed"
    assert await approved(stage, review.id, "bert") == "failed"

    async def carried_out() -> Review | None:
        async with stage.database.read() as tx:
            now = await reviews.get(tx, review.id)
        return now if now is not None and now.decision is Decision.CARRIED_OUT and not await present(stage) else None

    done = await stage.until("the orphan destroyed", carried_out, 60)
    assert done.decided_by == "engine:anna"
    assert len(await destructions(stage)) == 1
    repair = await stage.until("the repair's outcome", lambda: stage.repair("destroy_container", 0, outcome="repaired"), 60)
    assert repair.subject == review.subject
    a = t.audit.c
    lines = await stage.rows(select(a.actor, a.action).where(a.subject == f"review:{review.id}").order_by(a.id))
    assert [tuple(line) for line in lines] == [
        ("system:controller", "review.requested"),
        ("engine:anna", "review.approved"),
        ("system:controller", "review.carried_out"),
    ]
    status, said = await zlh(stack, "approve", review.id, "--yes")
    assert status == 1 and "carried_out by engine:anna" in said, said
