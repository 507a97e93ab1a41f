"""``zlh doctor`` against the simulated fleet: what is there, what is missing, what does not answer, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows import bootstrap
from flows.cli import doctor
from flows.clients.notifier import DiscordNotifier
from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.report.dispatch import Dispatcher
from flows.settings import Settings
from flows.state import outbox
from tests.support import fleet

pytestmark = pytest.mark.timeout(90)
Arm = Callable[..., None]


async def found(settings: Settings) -> dict[str, doctor.Check]:
    return {check.part: check for check in await doctor.examine(settings)}


def changed(settings: Settings, group: str, **values: object) -> Settings:
    part = getattr(settings, group)
    return settings.model_copy(update={group: part.model_copy(update=values)})


async def test_what_is_there_and_what_is_not(world: fleet.World) -> None:
    checks = await found(world.settings)
    fine = {name for name, check in checks.items() if check.ok}
    assert {"database", "database schema", "proxmox", "proxmox rights", "proxmox clock", "proxy bridge", "dns", "artifacts", "redis"} <= fine
    assert {"agents", "agents' authority", "forwarding secret"} <= fine
    engine, api = checks["engine"], checks["api"]  # neither runs here
    assert engine.ok is None and "ZLH_ENGINE__URL" in engine.remedy
    assert api.ok is False and "ZLH_API__ADMIN_TOKEN" in api.says


async def test_nobody_at_the_api(world: fleet.World) -> None:
    api = (await found(changed(world.settings, "api", admin_token=SecretStr("zlh_x"), public_bind="127.0.0.1:9")))["api"]
    assert api.ok is None and "zlh-api" in api.remedy


async def test_a_channel_that_takes_nothing_is_named_with_its_setting(world: fleet.World) -> None:
    async with bootstrap.deps(world.settings) as deps:
        async with deps.database.write() as tx:
            await outbox.put(tx, Event(EventKind.HOST_DOWN, "doctor", what="pve1 is down"), Route(Channel.CRITICAL, True, Severity.CRITICAL))
        dead = changed(world.settings, "notify", critical=SecretStr("1/gone"))
        notifier = DiscordNotifier(dead.notify)
        await Dispatcher(deps.database, notifier, dead, "doctor").drain()
        await notifier.close()
    channel = (await found(world.settings))["channel alerts-critical"]
    assert channel.ok is False and "404" in channel.says and "ZLH_NOTIFY__CRITICAL" in channel.remedy


async def test_a_lost_right_is_named(world: fleet.World, faults: Arm) -> None:
    faults("proxmox", "rights_lost")
    checks = await found(world.settings)
    rights = checks.get("proxmox rights") or checks["proxmox"]
    assert rights.ok is False and "VM.Audit" in rights.says


@pytest.mark.parametrize(
    ("group", "values", "part", "named"),
    [
        ("proxmox", {"ca_file": Path("/nowhere.pem")}, "proxmox", "ZLH_PROXMOX__CA_FILE"),
        ("proxmox", {"token": SecretStr("wrong")}, "proxmox", "ZLH_PROXMOX__TOKEN"),
        ("proxmox", {"ca_file": None, "fingerprint": "ab" * 32}, "proxmox", "ZLH_PROXMOX__FINGERPRINT"),
        ("proxy", {"token": SecretStr("wrong")}, "proxy", "ZLH_PROXY__TOKEN"),
        ("dns", {"tsig_secret": SecretStr("d3Jvbmc=")}, "dns", "ZLH_DNS__TSIG"),
        ("ansible", {"forwarding_secret": SecretStr("")}, "forwarding secret", "ZLH_ANSIBLE__FORWARDING_SECRET"),
    ],
)
async def test_a_wrong_setting_is_named_with_its_remedy(world: fleet.World, group: str, values: dict[str, object], part: str, named: str) -> None:
    check = (await found(changed(world.settings, group, **values)))[part]
    assert check.ok is False
    assert named in f"{check.says} {check.remedy}" and check.remedy


async def test_looking_makes_no_authority(world: fleet.World, tmp_path: Path) -> None:
    authority = (await found(changed(world.settings, "agent", ca_dir=tmp_path / "wrong")))["agents' authority"]
    assert authority.ok is False and "zlh ca init" in authority.remedy
    assert not (tmp_path / "wrong").exists()
