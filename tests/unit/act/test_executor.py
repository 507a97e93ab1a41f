"""How attempts end: undone in reverse, waiting for a clean-up, failed with the lease released, cancelled; each told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import select, update

from flows.domain.operation import Direction, OperationKind, OperationState
from flows.domain.server import ContainerType, ServerState
from flows.errors import Busy, Conflict, TaskFailed, Unproven, Unreachable
from flows.state import attempts, operations
from flows.state import tables as t
from tests.unit.act import fakes
from tests.unit.act.conftest import House


async def _lease_is_free(house: House, subject: str) -> bool:
    rows = await house.rows(select(t.leases.c.holder).where(t.leases.c.subject == subject))
    return all(r.holder is None for r in rows)


async def _told(house: House, kind: str) -> int:
    return len(await house.rows(select(t.outbox.c.id).where(t.outbox.c.kind == kind)))


async def test_a_creation_succeeds_and_is_told_once(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    assert await house.run(operation) == "succeeded"
    assert await house.state(operation) is OperationState.SUCCEEDED
    assert (await house.present(operation.server_id)).state is ServerState.ACTIVE
    assert await _lease_is_free(house, operation.server_id)
    assert await _told(house, "provisioning_succeeded") == 1
    assert await house.run(operation, attempt=1) == "superseded"


async def test_a_failed_creation_is_undone_in_reverse_and_told_once(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    house.world.before["preseed_fabric.yml"] = [TaskFailed("play", why="no")]
    assert await house.run(operation) == "failed"
    undone = [
        r.step for r in await house.rows(select(t.journal).where(t.journal.c.direction == Direction.UNDO.value).order_by(t.journal.c.finished_at))
    ]
    assert undone == ["prepare_workload", "deploy_agent", "trust", "start_container", "configure", "create_container"]
    server = await house.present(operation.server_id)
    assert server.state is ServerState.FAILED and not house.world.containers
    assert (await house.rows(select(t.vmids.c.state).where(t.vmids.c.vmid == server.vmid)))[0].state == "quarantined"
    assert await _lease_is_free(house, server.id)
    assert await _told(house, "provisioning_failed") == 1


async def test_every_failed_undo_is_counted(house: House) -> None:
    """Without the count the back-off never grows, and nobody is ever called."""
    operation = await house.order(OperationKind.PROVISION)
    house.world.before["preseed_fabric.yml"] = [TaskFailed("play", why="no")]
    house.world.before["destroy"] = [TaskFailed("destroy", why="no")] * 2
    assert await house.run(operation) == "cleanup_required"
    assert (await house.operation(operation.id)).undo_failures == 1
    assert await _lease_is_free(house, operation.server_id)


async def test_every_failed_deletion_is_counted(house: House) -> None:
    operation = await house.order(OperationKind.DELETE)
    house.world.before["destroy"] = [TaskFailed("destroy", why="protected")]
    assert await house.run(operation) == "cleanup_required"
    found = await house.operation(operation.id)
    assert (found.state, found.undo_failures) == (OperationState.CLEANUP_REQUIRED, 1)
    assert (await house.present(operation.server_id)).state is ServerState.DELETING


@pytest.mark.parametrize("kind", [OperationKind.START, OperationKind.STOP, OperationKind.RESTART])
async def test_what_has_no_undo_fails_after_three_attempts_and_gives_the_server_back(house: House, kind: OperationKind) -> None:
    operation = await house.order(kind)
    trouble = {"start": "agent.start", "stop": "agent.stop", "restart": "agent.restart"}[kind]
    house.world.before[trouble] = [TaskFailed("agent", why="no")] * 3
    assert [await house.run(operation) for _ in range(3)] == ["retrying", "retrying", "failed"]
    assert await house.state(operation) is OperationState.FAILED
    assert await _lease_is_free(house, operation.server_id)
    assert await _told(house, "operation_failed") == 1


async def test_cancelled_before_its_first_step(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    async with house.db.write() as tx:
        await operations.request_cancel(tx, operation.id, "test")
    assert await house.run(operation) == "cancelled"
    assert house.world.times("clone") == 0
    assert (await house.present(operation.server_id)).state is ServerState.DELETED


async def test_cancelled_between_the_last_proof_and_the_activation(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    proofs = 0

    async def ask() -> None:
        nonlocal proofs
        proofs += 1
        if (await house.operation(operation.id)).step == "activate":
            async with house.db.write() as tx:
                await operations.request_cancel(tx, operation.id, "test")

    house.world.after["agent.ready"] = [ask] * 20
    assert await house.run(operation) == "cancelled"
    assert not house.world.containers and not house.world.registrations and not house.world.owners
    assert await _told(house, "provisioning_succeeded") == 0


class Blinking:
    """A database whose next ``missing`` writing transactions do not come about."""

    def __init__(self, house: House) -> None:
        self._db, self.missing = house.db, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def write(self, *, epoch: int | None = None) -> object:
        if self.missing > 0:
            self.missing -= 1
            raise Unreachable("database", why="gone for a moment") if self.missing % 2 else Busy("database", why="deadlock")
        return self._db.write(epoch=epoch)


@pytest.mark.parametrize("point", ["claimed", "clone", "trust:do:begun", "configure:do:effect", "register_proxy:do:done"])
async def test_a_database_that_is_gone_for_a_moment_undoes_nothing(house: House, point: str) -> None:
    database = Blinking(house)

    async def boundary(name: str) -> None:
        if name == point:
            database.missing = 3

    async def blink() -> None:
        database.missing = 3

    house.world.after[point] = [blink]
    operation = await house.order(OperationKind.PROVISION)
    assert await house.run(operation, house.deps(database=database, boundary=boundary)) == "succeeded"
    assert house.world.times("destroy") == 0 and house.world.times("clone") == 1


async def test_a_commit_whose_answer_was_lost_is_not_taken_for_a_failure(house: House) -> None:
    """The activation arrived; the run that cannot know it must neither undo nor activate again."""
    operation = await house.order(OperationKind.PROVISION)

    class Forgetful(Blinking):
        def write(self, *, epoch: int | None = None) -> object:
            return _lost(house, self._db.write(epoch=epoch), operation.id)

    assert await house.run(operation, house.deps(database=Forgetful(house))) == "succeeded"
    assert house.world.times("destroy") == 0
    assert await house.state(operation) is OperationState.SUCCEEDED
    assert await _told(house, "provisioning_succeeded") == 1


class _lost:  # noqa: N801 - a context manager
    """Commits, and then says that it did not, once the operation has succeeded."""

    def __init__(self, house: House, inner: object, operation_id: str) -> None:
        self.house, self.inner, self.id = house, inner, operation_id

    async def __aenter__(self) -> object:
        self.tx = await self.inner.__aenter__()  # type: ignore[attr-defined]
        before = await operations.get(self.tx, self.id)
        self.live = before is not None and before.finished_at is None
        return self.tx

    async def __aexit__(self, *error: object) -> object:
        after = await operations.get(self.tx, self.id) if error[0] is None else None
        result = await self.inner.__aexit__(*error)  # type: ignore[attr-defined]
        if self.live and after is not None and after.finished_at is not None:
            raise Unreachable("database", why="the connection broke at the commit")
        return result


async def test_a_person_who_removed_the_container_does_not_block_the_undo(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)

    async def remove() -> None:
        house.world.containers.clear()

    house.world.after["trust:do:begun"] = []
    house.world.before["bootstrap.yml"] = [remove]
    house.world.after["bootstrap.yml"] = [TaskFailed("play", why="gone")]
    assert await house.run(operation) == "failed"


async def test_an_operation_without_undo_that_the_controller_ended_is_told(house: House) -> None:
    from flows.act.repairs import operations as operation_repairs
    from flows.domain.finding import Action, Check, Finding

    operation = await house.order(OperationKind.START)
    finding = Finding(Check.STUCK_PROVISIONING, f"operation:{operation.id}", "stuck", 1, Action.FAIL_STUCK, operation.server_id, operation.id)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(deadline_at=0))
        assert await operation_repairs.order(house.deps(), tx, finding, Action.FAIL_STUCK)
    assert await house.state(operation) is OperationState.FAILED
    assert await _told(house, "operation_failed") == 1


async def _state_of_vmid(house: House, vmid: int) -> str:
    return str((await house.rows(select(t.vmids.c.state).where(t.vmids.c.vmid == vmid)))[0].state)


def _strangers() -> fakes.Container:
    return fakes.Container("running", description="somebody else's")


async def test_a_vmid_that_was_taken_between_the_look_and_the_clone_is_burnt_and_another_used(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    server = await house.present(operation.server_id)

    async def taken() -> None:
        house.world.containers[server.vmid] = _strangers()
        raise Conflict("clone", why=f"CT {server.vmid} already exists on node 'pve1'")

    house.world.before["clone"] = [taken]
    assert await house.run(operation) == "succeeded"
    assert (await house.present(operation.server_id)).vmid != server.vmid
    assert await _state_of_vmid(house, server.vmid) == "burnt" and house.world.containers[server.vmid].status == "running"
    async with house.db.read() as tx:
        said = (await tx.execute(select(t.audit.c.actor, t.audit.c.server_id).where(t.audit.c.action == "vmid.burn"))).all()
    assert [tuple(line) for line in said] == [(operation.actor, server.id)]


async def test_a_container_that_was_migrated_while_it_was_made_is_neither_abandoned_nor_called_foreign(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    server = await house.present(operation.server_id)

    async def migrated() -> None:
        house.world.containers[server.vmid].node = "pve2"
        raise TaskFailed("play", why="no")

    house.world.before["bootstrap.yml"] = [migrated]
    assert await house.run(operation) == "cleanup_required"
    assert "pve2" in str((await house.operation(operation.id)).error)
    assert await _state_of_vmid(house, server.vmid) == "reserved"
    house.world.containers[server.vmid].node = server.node  # a person brought it back
    async with house.db.write() as tx:
        await operations.set_state(tx, operation.id, OperationState.COMPENSATING)
        await attempts.next_attempt(tx, operation.id)
    assert await house.run(operation) == "failed"
    assert not house.world.containers and await _state_of_vmid(house, server.vmid) == "quarantined"


async def test_a_strangers_container_on_another_node_burns_the_vmid(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    server = await house.present(operation.server_id)
    house.world.containers[server.vmid] = replace(_strangers(), node="pve2")
    assert await house.run(operation) == "succeeded"
    assert await _state_of_vmid(house, server.vmid) == "burnt"


async def test_an_undo_leaves_a_stranger_alone_who_got_our_vmid_meanwhile(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    server = await house.present(operation.server_id)

    async def swapped() -> None:
        house.world.containers[server.vmid] = _strangers()
        raise TaskFailed("play", why="no")

    house.world.before["bootstrap.yml"] = [swapped]
    assert await house.run(operation) == "failed"
    assert house.world.containers == {server.vmid: _strangers()} and await _state_of_vmid(house, server.vmid) == "burnt"


@pytest.mark.parametrize(
    ("kind", "status", "ctype"),
    [
        (OperationKind.START, "stopped", ContainerType.GAME),
        (OperationKind.STOP, "running", ContainerType.DEV),
        (OperationKind.RESTART, "running", ContainerType.DEV),
    ],
)
async def test_no_order_touches_a_container_by_its_vmid_alone(house: House, kind: OperationKind, status: str, ctype: ContainerType) -> None:
    server = await house.server(ctype=ctype)
    house.world.containers[server.vmid] = replace(_strangers(), status=status)
    operation = await house.order(kind, server)
    for _ in range(3):
        outcome = await house.run(operation)
    assert outcome == "failed"
    assert not [call for call in house.world.calls if call.startswith("proxmox.")]


async def test_a_strangers_clone_under_its_lock_is_not_destroyed_for_half_of_ours(house: House) -> None:
    """Found as ours and whole, replaced by a stranger's clone in the making before the destruction's own look."""
    operation = await house.order(OperationKind.PROVISION)
    server = await house.present(operation.server_id)
    house.world.before["bootstrap.yml"] = [TaskFailed("play", why="no")]

    async def swapped() -> None:
        house.world.containers[server.vmid] = fakes.Container(description="somebody else's", lock="create")

    async def at(name: str) -> None:
        if name == "create_container:undo:begun":
            house.world.after["config"] = [None, swapped]

    assert await house.run(operation, house.deps(boundary=at)) != "cancelled"
    assert not house.world.times("destroy")


async def test_a_deletion_that_nobody_could_prove_is_no_failed_one(house: House) -> None:
    """Slow clones of the same template, one after the other, leave every absence open."""
    operation = await house.order(OperationKind.DELETE)
    house.world.after["destroy"] = [partial(_always_cloning, house)]
    assert await house.run(operation, house.deps(step_factor=0.001)) == "cleanup_required"
    assert (await house.operation(operation.id)).undo_failures == 0
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(deadline_at=1))
        await operations.set_state(tx, operation.id, OperationState.RUNNING)
        await attempts.next_attempt(tx, operation.id)
    assert await house.run(operation, house.deps(step_factor=0.001)) == "cleanup_required"
    assert (await house.operation(operation.id)).undo_failures == 1, "in the end somebody must look"


async def _always_cloning(house: House) -> None:
    house.world.before["proven_absent"] = [Unproven("absence", why="a clone of 9000 is running and may be making it")] * 10_000


async def test_a_release_takes_no_vmid_from_its_next_owner(house: House) -> None:
    operation = await house.order(OperationKind.DELETE)
    server = await house.present(operation.server_id)
    async with house.db.write() as tx:
        await tx.execute(update(t.vmids).where(t.vmids.c.vmid == server.vmid).values(server_id="somebody else's"))
    assert await house.run(operation) == "succeeded"
    assert await _state_of_vmid(house, server.vmid) == "reserved"


async def test_a_clone_waits_for_the_one_that_a_killed_run_left_behind(house: House) -> None:
    """Two at a time on one storage run into its lock, and both fail."""
    looked: list[int] = []

    class Cloning(fakes.Proxmox):
        async def cloning(self, node: str) -> Sequence[str]:
            looked.append(self.w.times("clone"))
            return ["UPID:pve1:1:1:1:vzclone:9001:zlh@pve!autopilot:"] if len(looked) < 3 else []

    operation = await house.order(OperationKind.PROVISION)
    assert await house.run(operation, replace(house.deps(), proxmox=Cloning(house.world))) == "succeeded"
    assert looked == [0, 0, 0] and house.world.times("clone") == 1
