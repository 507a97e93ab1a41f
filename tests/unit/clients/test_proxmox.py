"""The Proxmox client against fakepve, an independent fake of the API, over HTTPS with its certificate verified."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from flows.clients.proxmox import LEAST_RIGHTS, ProxmoxClient
from flows.domain.ports import CloneSpec, ContainerSpec
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadAnswer,
    BadInput,
    Busy,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    MisconfiguredSetting,
    NotFound,
    TaskFailed,
    Unauthorized,
    Unproven,
    Unreachable,
)
from flows.settings import ProxmoxSettings

#: fakepve leaves the connections that it drops to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SECRET = "3f1c9f2e-aaaa-bbbb-cccc-0123456789ab"
TOKEN = "zlh@pve!autopilot"
TEMPLATE = 9000
CLONE = CloneSpec(node="pve1", template_vmid=TEMPLATE, vmid=10_000, storage="local-lvm", hostname="zlh-game-10000", description="zlh-op-42")
SPEC = ContainerSpec(
    tags=frozenset({"zlh", "game", "zlh-op-42"}),
    cores=2,
    memory_mb=2048,
    disk_gb=12,
    bridge="vmbr0",
    address_cidr="10.20.0.11/16",
    gateway="10.20.0.1",
)


def settings(url: str, ca: str | Path | None, **changes: Any) -> ProxmoxSettings:
    values: dict[str, Any] = {"host": url.removeprefix("https://"), "token": SecretStr(SECRET), "ca_file": ca, "timeout_s": 10.0, "poll_s": 0.02}
    return ProxmoxSettings(**(values | changes))


@pytest.fixture
def pve(fakepve: Any) -> Any:
    fakepve.apitokens[TOKEN] = SECRET
    for path, privileges in LEAST_RIGHTS.items():
        fakepve.grant(TOKEN, path, *privileges)
    fakepve.add_ct(TEMPLATE, name="template", template=True)
    return fakepve


@pytest.fixture
async def client(pve: Any, fakepve_cafile: str) -> AsyncIterator[ProxmoxClient]:
    made = ProxmoxClient(settings(pve.url, fakepve_cafile))
    yield made
    await made.close()


async def test_a_container_lives_from_clone_to_proven_absence(client: ProxmoxClient, pve: Any) -> None:
    assert await client.proven_absent(10_000, template_vmid=TEMPLATE)
    assert (await client.wait(await client.clone(CLONE), 5)).ok
    config = await client.config("pve1", 10_000)
    assert config.description == "zlh-op-42"
    assert config.lock is None
    assert not await client.proven_absent(10_000, template_vmid=TEMPLATE)

    upid = await client.configure("pve1", 10_000, SPEC)
    assert upid is not None  # the disk had to grow
    await client.wait(upid, 5)
    config = await client.config("pve1", 10_000)
    assert config.tags == SPEC.tags
    assert "ip=10.20.0.11/16" in str(config.raw["net0"])
    assert str(config.raw["memory"]) == "2048"
    assert "size=12G" in str(config.raw["rootfs"])

    started = await client.start("pve1", 10_000)
    assert started is not None
    await client.wait(started, 5)
    assert await client.status("pve1", 10_000) == "running"
    view = await client.view()
    assert view.containers[10_000].status == "running"
    assert view.containers[10_000].tags == SPEC.tags
    assert view.containers[TEMPLATE].template
    assert view.nodes_online == {"pve1": True}

    stopped = await client.stop("pve1", 10_000)
    assert stopped is not None
    await client.wait(stopped, 5)
    await client.wait(await client.destroy("pve1", 10_000), 5)
    assert await client.proven_absent(10_000, template_vmid=TEMPLATE)


async def test_configuring_twice_changes_nothing_the_second_time(client: ProxmoxClient, pve: Any) -> None:
    await client.clone(CLONE)
    await client.configure("pve1", 10_000, SPEC)
    before = len(pve.requests)
    assert await client.configure("pve1", 10_000, SPEC) is None
    assert [method for method, _, _ in pve.requests[before:]] == ["GET"]


async def test_the_mac_address_survives_a_new_address(client: ProxmoxClient, pve: Any) -> None:
    await client.clone(CLONE)
    pve.ct(10_000).config["net0"] = "name=eth0,bridge=vmbr1,firewall=1,hwaddr=BC:24:11:00:00:01,ip=dhcp,type=veth"
    await client.configure("pve1", 10_000, SPEC)
    net0 = str((await client.config("pve1", 10_000)).raw["net0"])
    assert "hwaddr=BC:24:11:00:00:01" in net0
    assert "firewall=1" in net0
    assert "bridge=vmbr0" in net0
    assert "dhcp" not in net0


async def test_starting_what_runs_and_stopping_what_does_not_needs_nothing(client: ProxmoxClient, pve: Any) -> None:
    pve.add_ct(10_001, status="running")
    pve.add_ct(10_002)
    assert await client.start("pve1", 10_001) is None
    assert await client.stop("pve1", 10_002) is None
    assert await client.shutdown("pve1", 10_002, 5) is None


async def test_an_empty_list_without_rights_is_unproven(client: ProxmoxClient, pve: Any) -> None:
    pve.acl[TOKEN] = []
    with pytest.raises((Unproven, Forbidden)) as caught:
        await client.view()
    assert "VM.Audit" in str(caught.value)
    with pytest.raises((Unproven, Forbidden)):
        await client.proven_absent(10_000)


async def test_no_word_counts_without_quorum(client: ProxmoxClient, pve: Any) -> None:
    pve.lose_quorum()
    with pytest.raises(Unproven, match="not quorate"):
        await client.view()
    with pytest.raises(Unproven, match="not quorate"):
        await client.proven_absent(10_000)
    with pytest.raises(Busy, match="no quorum"):
        await client.clone(CLONE)


async def test_a_running_clone_of_the_template_hides_its_target(client: ProxmoxClient, pve: Any) -> None:
    pve.time_scale = 1.0
    pve.ct_secs["clone"] = 0.6
    upid = await client.clone(CLONE)
    with pytest.raises(Unproven, match="clone"):
        await client.proven_absent(10_007, template_vmid=TEMPLATE)
    assert list(await client.clone_tasks("pve1", TEMPLATE, int(time.time()) - 60)) == [(upid, True)]
    assert [t.upid for t in await client.tasks_of(TEMPLATE)] == [upid]
    assert await client.tasks_of(10_007) == []
    await client.wait(upid, 5)
    assert await client.proven_absent(10_007, template_vmid=TEMPLATE)
    assert list(await client.clone_tasks("pve1", TEMPLATE, int(time.time()) - 60)) == [(upid, False)]
    assert await client.clone_tasks("pve1", TEMPLATE, int(time.time()) + 60) == []


async def test_waiting_has_a_deadline_and_the_task_goes_on(client: ProxmoxClient, pve: Any) -> None:
    pve.time_scale = 1.0
    pve.ct_secs["clone"] = 0.8
    upid = await client.clone(CLONE)
    with pytest.raises(DeadlineExceeded, match="still running"):
        await client.wait(upid, 0.1)
    assert not (await client.task(upid)).finished
    assert (await client.wait(upid, 5)).ok


async def test_a_failed_task_tells_its_log(client: ProxmoxClient, pve: Any) -> None:
    ct = pve.add_ct(10_003)
    ct.start_error = "startup for container '10003' failed"
    upid = await client.start("pve1", 10_003)
    assert upid is not None
    with pytest.raises(TaskFailed, match="startup for container"):
        await client.wait(upid, 5)
    status = await client.task(upid)
    assert status.finished and not status.ok


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (500, "CT is locked (backup)", Busy),
        (500, "can't lock file '/run/lock/lxc/pve-config-10000.lock' - got timeout", Busy),
        (500, "cluster not ready - no quorum?", Busy),
        (500, "CT 10000 already exists on node 'pve1'", Conflict),
        (500, "unable to create CT 10000 - CT 10000 already exists on node 'pve1'", Conflict),
        (500, "Configuration file 'nodes/pve1/lxc/10000.conf' does not exist", NotFound),
        (500, "unable to destroy CT 10000 - container is running", Conflict),
        (500, "can't remove CT 10000 - protection mode enabled", Conflict),
        (403, "Permission check failed (/vms/10000, VM.Clone)", Forbidden),
        (501, "Method 'POST /x' not implemented", MisconfiguredSetting),
        (595, "No route to host", AmbiguousEffect),
        (596, "broken pipe", AmbiguousEffect),
        (599, "Too many redirections", AmbiguousEffect),
        (502, "Bad Gateway", AmbiguousEffect),
        (500, "something new", TaskFailed),
    ],
)
async def test_writes_fail_as_the_api_says(client: ProxmoxClient, pve: Any, status: int, message: str, expected: type[AutomationError]) -> None:
    pve.fail("POST", f"/lxc/{TEMPLATE}/clone", status, message)
    with pytest.raises(expected) as caught:
        await client.clone(CLONE)
    assert type(caught.value) is expected
    assert SECRET not in str(caught.value)


async def test_a_missing_right_is_named_with_its_path(client: ProxmoxClient, pve: Any) -> None:
    pve.acl[TOKEN] = [(path, privs - {"VM.PowerMgmt"}) for path, privs in pve.acl[TOKEN]]
    pve.add_ct(10_005)
    with pytest.raises(Forbidden, match=r"VM\.PowerMgmt on /vms/10005"):
        await client.start("pve1", 10_005)


async def test_a_read_of_a_dead_node_is_tried_again_and_then_unreachable(client: ProxmoxClient, pve: Any) -> None:
    pve.add_ct(10_006)
    pve.fail("GET", "/lxc/10006/config", 595, "No route to host", times=2)
    assert (await client.config("pve1", 10_006)).vmid == 10_006
    pve.fail("GET", "/lxc/10006/config", 596, "Connection reset by peer")
    with pytest.raises(Unreachable, match="596"):
        await client.config("pve1", 10_006)


async def test_a_write_is_never_sent_twice(client: ProxmoxClient, pve: Any) -> None:
    pve.fail("POST", f"/lxc/{TEMPLATE}/clone", 596, "broken pipe")
    with pytest.raises(AmbiguousEffect):
        await client.clone(CLONE)
    assert sum(path.endswith("/clone") for _, path, _ in pve.requests) == 1


async def test_only_the_literal_text_means_not_found(client: ProxmoxClient, pve: Any) -> None:
    with pytest.raises(NotFound):
        await client.config("pve1", 10_099)
    pve.fail("GET", "/lxc/10099/config", 404, "Not Found")
    with pytest.raises(MisconfiguredSetting):
        await client.config("pve1", 10_099)


async def test_a_refused_token_names_the_setting(pve: Any, fakepve_cafile: str) -> None:
    client = ProxmoxClient(settings(pve.url, fakepve_cafile, token=SecretStr("wrong-but-secret")))
    with pytest.raises(Unauthorized, match="ZLH_PROXMOX__TOKEN") as caught:
        await client.view()
    assert "wrong-but-secret" not in str(caught.value)
    await client.close()


async def test_a_missing_token_names_the_setting(pve: Any, fakepve_cafile: str) -> None:
    client = ProxmoxClient(settings(pve.url, fakepve_cafile, token=SecretStr("")))
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__TOKEN"):
        await client.view()
    await client.close()


@pytest.mark.parametrize("ca", ["system", "other", "missing", "garbage"])
async def test_a_wrong_ca_names_the_setting(pve: Any, tmp_path: Path, ca: str) -> None:
    from fakepve.certs import make_cert

    (tmp_path / "garbage.pem").write_text("no certificate")
    file = {"system": None, "other": make_cert(str(tmp_path), "other")[0], "missing": tmp_path / "none.pem", "garbage": tmp_path / "garbage.pem"}[ca]
    client = ProxmoxClient(settings(pve.url, file))
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__CA_FILE"):
        await client.config("pve1", TEMPLATE)
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__CA_FILE"):
        await client.clone(CLONE)
    await client.close()


async def test_a_host_name_is_refused() -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__HOST"):
        ProxmoxClient(ProxmoxSettings(host="pve1.example:8006"))


async def test_nobody_listening_is_unreachable_for_writes_too(fakepve_cafile: str) -> None:
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    client = ProxmoxClient(settings(f"127.0.0.1:{port}", fakepve_cafile, timeout_s=2.0))
    with pytest.raises(Unreachable, match="refused"):
        await client.clone(CLONE)
    await client.close()


async def test_a_hanging_api_ends_at_the_time_out(client: ProxmoxClient, pve: Any, fakepve_cafile: str) -> None:
    impatient = ProxmoxClient(settings(pve.url, fakepve_cafile, timeout_s=0.6))
    pve.network.update(hang_rate=1.0, hang_secs=1.5)
    began = time.monotonic()
    with pytest.raises(AmbiguousEffect):
        await impatient.clone(CLONE)
    with pytest.raises(Unreachable):
        await impatient.config("pve1", TEMPLATE)
    assert time.monotonic() - began < 3
    await impatient.close()


async def test_a_lost_answer_is_ambiguous(client: ProxmoxClient, pve: Any) -> None:
    pve.network["drop_rate"] = 1.0
    with pytest.raises(AmbiguousEffect):
        await client.clone(CLONE)


async def test_what_is_no_json_is_a_bad_answer_and_an_ambiguous_write(client: ProxmoxClient, pve: Any) -> None:
    pve.fail("GET", f"/lxc/{TEMPLATE}/config", 200, "<html>login</html>", html=True)
    with pytest.raises(BadAnswer):
        await client.config("pve1", TEMPLATE)
    pve.fail("POST", f"/lxc/{TEMPLATE}/clone", 200, "<html>login</html>", html=True)
    with pytest.raises(AmbiguousEffect):
        await client.clone(CLONE)


async def test_an_answer_beyond_the_cap_is_refused(pve: Any, fakepve_cafile: str) -> None:
    client = ProxmoxClient(settings(pve.url, fakepve_cafile), max_answer_bytes=64)
    with pytest.raises(BadAnswer, match="64 bytes"):
        await client.config("pve1", TEMPLATE)
    await client.close()


async def test_a_tag_that_proxmox_would_refuse_is_refused_before(client: ProxmoxClient, pve: Any) -> None:
    before = len(pve.requests)
    with pytest.raises(BadInput, match="tags"):
        await client.configure("pve1", 10_000, ContainerSpec(frozenset({"No Good"}), 1, 1, 1, "vmbr0", "10.0.0.1/8", "10.0.0.2"))
    assert len(pve.requests) == before


async def test_doctor_names_version_missing_rights_quorum_and_clock(client: ProxmoxClient, pve: Any) -> None:
    found = await client.doctor()
    assert found["version"] == pve.version
    assert found["rights_missing"] == []
    assert found["quorate"] is True
    assert isinstance(found["clock_difference_s"], float)  # fakepve's clock stands still
    pve.acl[TOKEN] = [(path, privs - {"VM.Clone"}) for path, privs in pve.acl[TOKEN]]
    assert (await client.doctor())["rights_missing"] == ["VM.Clone on /vms"]


async def test_the_task_of_a_lost_upid_is_unproven(client: ProxmoxClient) -> None:
    with pytest.raises(Unproven):
        await client.task(f"UPID:pve1:0000ABCD:00001234:65000000:vzstart:10000:{TOKEN}:")
    with pytest.raises(BadAnswer, match="UPID"):
        await client.task("nonsense")
