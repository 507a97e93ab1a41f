"""Orders, brakes, people and set-up, against a real database and, for orders, the real front door on a loopback port."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, select

from flows.cli import look, reviews, role_page, settings_page
from flows.cli.nouns import BY_NAME
from flows.domain.finding import Check, EpisodeChange, Finding, Reason, Transition
from flows.domain.lease import LeaseKind
from flows.domain.node import Node
from flows.domain.operation import OperationKind, OperationState, Queue
from flows.state import episodes, leases, nodes, operations, servers, vmids
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id
from tests.unit.state.conftest import Make

from .conftest import DAY, HOUR, Fleet, Said

ROOT = Path(__file__).parents[3]


@pytest.fixture
def host(write: Callable[..., Any]) -> None:
    async def put(tx: Tx) -> None:
        await Make().node(tx)
        assert await nodes.list_(tx)

    write(put)


def test_an_order_goes_through_the_front_door(zlh: Callable[..., Said], api: str, host: None) -> None:
    zlh("customers", "add", "alice")
    said = zlh("create", "fern", "--customer", "alice", "--nonce", "n1", "--no-wait", "--json")
    assert said.status == 0, said.err
    ordered = json.loads(said.out)
    assert ordered["server"]["name"] == "fern"
    again = json.loads(zlh("create", "fern", "--customer", "alice", "--nonce", "n1", "--no-wait", "--json").out)
    assert (again["operation"]["id"], again["deduplicated"]) == (ordered["operation"]["id"], True)
    said = zlh("create", "fern", "--customer", "alice", "--no-wait")
    assert said.status == 1
    assert said.err.startswith("zlh: POST /api/servers/create · ")
    said = zlh("restart", "fern", "--no-wait")
    assert said.status == 1
    said = zlh("create", "Www!", "--customer", "alice", "--no-wait")
    assert said.status == 2
    assert "NAME" in said.err
    cancelled = json.loads(zlh("operations", "cancel", ordered["operation"]["id"][-8:], "--no-wait", "--json").out)
    assert cancelled["operation"]["id"] == ordered["operation"]["id"]


def test_no_capacity_is_a_no_and_not_an_outage(zlh: Callable[..., Said], api: str) -> None:
    zlh("customers", "add", "alice")
    said = zlh("create", "fern", "--customer", "alice", "--no-wait")
    assert (said.status, said.out) == (1, "")


def test_following_says_how_it_ended(zlh: Callable[..., Said], api: str, write: Callable[..., Any]) -> None:
    async def over(tx: Tx) -> str:
        operation = await Make().operation(tx)
        await operations.set_state(tx, operation.id, OperationState.FAILED, error={"what": "clone", "why": "no space", "remedy": "add a disk"})
        return operation.id

    operation_id = write(over)
    said = zlh("operations", "follow", operation_id)
    assert said.status == 1
    assert "provision failed: clone · no space · add a disk" in said.out
    assert json.loads(zlh("operations", "follow", operation_id, "--json").out)["state"] == "failed"


def test_an_api_that_does_not_answer_could_not_be_looked_at(zlh: Callable[..., Said], fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zlh("stop", "fern").status == 2  # no token
    monkeypatch.setenv("ZLH_API__ADMIN_TOKEN", "zlh_x")
    monkeypatch.setenv("ZLH_API__PUBLIC_BIND", "127.0.0.1:1")
    said = zlh("stop", "fern")
    assert said.status == 3
    assert said.err.startswith("zlh: API at 127.0.0.1:1 · ")
    assert "zlh_x" not in said.err


def test_a_refused_token_says_how_to_get_one(zlh: Callable[..., Said], api: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_API__ADMIN_TOKEN", "zlh_wrong")
    said = zlh("stop", "fern")
    assert said.status == 1
    assert "zlh token create --admin" in said.err


def test_without_a_terminal_a_question_needs_yes(zlh: Callable[..., Said], fleet: Fleet) -> None:
    for arguments in (
        ("delete", "fern"),
        ("pause", "--all"),
        ("resume", "--all"),
        ("customers", "suspend", "customer-1"),
        ("repair-level", "set", "0"),
    ):
        said = zlh(*arguments)
        assert said.status == 2, arguments
        assert "add --yes" in said.err


def test_a_pause_is_shown_and_lifted(zlh: Callable[..., Said], fleet: Fleet) -> None:
    row = json.loads(zlh("pause", "--server", "fern", "--until", "30m", "--reason", "moving", "--yes", "--json").out)
    assert (row["scope"], row["target"], row["reason"]) == ("server", fleet.ids["fern"], "moving")
    assert row["until"].endswith("Z")
    assert "PAUSED: server fern (moving, until " in zlh("status").out
    assert zlh("resume", "--server", "fern", "--yes").out == "resumed fern\n"
    said = zlh("resume", "--server", "fern", "--yes")
    assert said.status == 1
    assert "is not paused" in said.err


@pytest.mark.parametrize("arguments", [(), ("--all", "--host", "pve1"), ("--until", "x", "--all")])
def test_a_pause_needs_exactly_one_target(zlh: Callable[..., Said], fleet: Fleet, arguments: tuple[str, ...]) -> None:
    assert zlh("pause", "--yes", *arguments).status == 2


def test_a_pause_of_what_does_not_exist_is_refused(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert zlh("pause", "--host", "nix", "--yes").status == 1
    assert zlh("pause", "--server", "nix", "--yes").status == 1


def test_pauses_are_announced(zlh: Callable[..., Said], home: Path, write: Callable[..., Any]) -> None:
    zlh("pause", "--all", "--yes")
    zlh("resume", "--all", "--yes")

    async def look(tx: Tx) -> list[str]:
        return [row.kind for row in await tx.execute(select(t.outbox.c.kind).order_by(t.outbox.c.id))]

    assert write(look) == ["automation_paused", "automation_resumed"]


def test_a_burnt_vmid_is_listed_and_freed_by_a_person(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    listed = [json.loads(line) for line in zlh("vmids", "--state", "burnt", "--json").out.splitlines()]
    assert [(row["vmid"], row["reason"]) for row in listed] == [(10_777, "taken by a container that is not ours")]
    asked = zlh("vmids", "free", "10777")
    assert asked.status == 2 and "--yes" in asked.err
    assert zlh("vmids", "free", "10777", "--yes").status == 0
    assert zlh("vmids", "--state", "burnt", "--json").out == ""
    (line,) = [json.loads(each) for each in zlh("audit", "--action", "vmid.free", "--json").out.splitlines()]
    assert (line["subject"], line["detail"]) == ("vmid:10777", {"reason": "taken by a container that is not ours"})


def test_no_other_vmid_can_be_freed(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    async def reserve(tx: Tx) -> int:
        return await vmids.reserve(tx, fleet.ids["moss"], 10_800, 10_810)

    taken = write(reserve)
    said = zlh("vmids", "free", str(taken), "--yes")
    assert said.status == 1 and "is not burnt, but reserved" in said.err and "zlh vmids --state burnt" in said.err
    assert [json.loads(line)["vmid"] for line in zlh("vmids", "--server", "moss", "--json").out.splitlines()] == [taken]
    assert zlh("vmids", "free", "4711", "--yes").status == 1
    assert zlh("vmids", "free", "nonsense", "--yes").status == 1
    assert set(BY_NAME["vmids"].choices["state"]) == set(vmids.Reservation)


def test_maintenance_takes_extends_and_gives_back(zlh: Callable[..., Said], fleet: Fleet) -> None:
    first = json.loads(zlh("maintenance", "on", "moss", "--yes", "--for", "1h", "--json").out)
    second = json.loads(zlh("maintenance", "on", "moss", "--yes", "--for", "2h", "--json").out)
    assert first["token"] == second["token"]
    assert first["expires_at"] < second["expires_at"]
    assert zlh("maintenance", "off", "moss", "--yes").status == 0
    assert zlh("maintenance", "off", "moss", "--yes").status == 1


@pytest.mark.parametrize("way", ["on", "off"])
def test_maintenance_is_not_taken_or_given_back_unasked(zlh: Callable[..., Said], fleet: Fleet, way: str) -> None:
    if way == "off":
        assert zlh("maintenance", "on", "moss", "--yes").status == 0
    before = zlh("leases", "--json").out
    said = zlh("maintenance", way, "moss")
    assert said.status == 2 and "add --yes" in said.err and "moss" in said.err
    assert [json.loads(line)["token"] for line in zlh("leases", "--json").out.splitlines()] == [
        json.loads(line)["token"] for line in before.splitlines()
    ]


def test_maintenance_names_the_operation_in_its_way(zlh: Callable[..., Said], fleet: Fleet) -> None:
    said = zlh("maintenance", "on", "fern", "--yes")
    assert said.status == 1
    assert "operation" in said.err


def test_maintenance_is_refused_while_an_operation_waits_for_its_turn(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    async def queue(tx: Tx) -> str:
        return (await Make().operation(tx, await servers.get(tx, fleet.ids["moss"]), kind=OperationKind.RESTART, queue=Queue.OPERATIONS)).id

    taken = json.loads(zlh("maintenance", "on", "moss", "--yes", "--json").out)
    queued = write(queue)
    assert json.loads(zlh("maintenance", "on", "moss", "--yes", "--json").out)["token"] == taken["token"]  # one's own is prolonged all the same
    zlh("maintenance", "off", "moss", "--yes")
    said = zlh("maintenance", "on", "moss", "--yes")
    assert (said.status, said.out) == (1, "")
    assert f"restart {queued} is queued · wait for it: zlh operations follow {queued}" in said.err


def test_maintenance_waits_on_request(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    import threading

    async def release(tx: Tx) -> None:
        await operations.set_state(tx, fleet.ids["operation"], OperationState.FAILED)
        lease = await leases.get(tx, fleet.ids["fern"])
        assert lease is not None
        await leases.release(tx, lease.subject, lease.token)

    threading.Timer(0.3, lambda: write(release)).start()
    said = zlh("maintenance", "on", "fern", "--yes", "--wait", "--json")
    assert json.loads(said.out)["kind"] == LeaseKind.MAINTENANCE
    assert "waiting" in said.err


def test_the_repair_level_is_set_and_audited(zlh: Callable[..., Said], home: Path) -> None:
    assert json.loads(zlh("repair-level", "--json").out) == {"level": 1}
    assert zlh("repair-level", "set", "2", "--yes").out == "levels 0–2\n"
    assert json.loads(zlh("audit", "--json", "--limit", "1").out)["detail"] == {"to": 2}


def test_before_a_level_is_raised_its_evidence_is_shown(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    """What it would have done, where the level alone stood in the way, and how its repairs ended."""

    async def history(tx: Tx) -> None:
        row = {
            "check": "workload_stopped",
            "summary": "",
            "remedy": "",
            "reason": "level_disabled",
            "severity": 1,
            "evidence": {},
            "last_seen_at": tx.now,
        }
        held: tuple[tuple[int, int | None, str], ...] = (
            (3 * HOUR, 2 * HOUR, "level_disabled"),
            (2 * HOUR, None, "level_disabled"),
            (2 * HOUR, HOUR, "repairing"),
            (45 * DAY, 40 * DAY, "level_disabled"),
        )
        for number, (opened, closed, reason) in enumerate(held):
            times = {"opened_at": tx.now - opened, "closed_at": None if closed is None else tx.now - closed}
            await tx.execute(insert(t.episodes).values(row | times | {"id": new_id(), "subject": f"s{number}", "reason": reason}))

    write(history)
    assert zlh("repair-level", "set", "0", "--yes").err == ""
    said = zlh("repair-level", "set", "2", "--yes")
    level1, level2 = said.err.split("level 2, ")
    assert "  dns_record                would not have acted · 0 repaired, 3 failed\n" in level1
    assert "  workload_stopped          would have acted 2 times on 2, 1 ended without it after 60 m · no repairs\n" in level2
    assert level2.endswith("  nothing is known here of workload_error\n")
    assert said.out == "levels 0–2\n"
    assert zlh("repair-level", "set", "2").status == 2, "nobody was asked"
    offline = json.loads(zlh("repair-level", "set", "3", "--yes", "--json").out)["evidence"][0]
    assert (offline["check"], offline["level"], offline["would_have_acted"]) == ("container_missing", 3, 0)


def test_what_ended_by_itself_is_evidence_as_a_sweep_writes_it(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    finding = Finding(Check.WORKLOAD_STOPPED, fleet.ids["fern"], "stopped", level=2, server_id=fleet.ids["fern"])

    async def lived(tx: Tx) -> None:
        await episodes.apply(tx, [EpisodeChange(Transition.OPENED, finding.key, finding, None, Reason.LEVEL_DISABLED)])
        await episodes.apply(tx, [EpisodeChange(Transition.CLOSED, finding.key, None, None, "gone")])

    write(lived)
    assert zlh("repair-level", "set", "1", "--yes").err == ""
    assert "  workload_stopped          would have acted 1 times on 1, 1 ended without it" in zlh("repair-level", "set", "2", "--yes").err


def test_suspending_closes_the_customers_servers_to_players(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    assert zlh("customers", "suspend", "customer-1", "--yes").out == "customer-1 is suspended\n"

    async def look(tx: Tx) -> tuple[str, str]:
        server = await servers.get(tx, fleet.ids["fern"])
        assert server is not None
        return server.state.value, server.edge.value

    assert write(look) == ("suspended", "withdrawn")
    assert json.loads(zlh("customers", "resume", "customer-1", "--json").out)["changed"] is True
    assert write(look) == ("active", "open")


def test_a_token_is_shown_once_and_revoked(zlh: Callable[..., Said], fleet: Fleet) -> None:
    made = json.loads(zlh("token", "create", "--customer", "customer-1", "--expires", "2h", "--json").out)
    assert made["token"].startswith("zlh_")
    assert made["token"] not in zlh("tokens", "--all", "--json").out
    assert zlh("token", "revoke", made["id"]).status == 0
    assert zlh("token", "revoke", made["id"]).status == 1
    assert zlh("token", "create").status == 2


def test_hosts_are_added_with_their_templates(zlh: Callable[..., Said], home: Path) -> None:
    common = ("hosts", "add", "pve9", "--memory", "1000", "--disk", "10", "--cores", "2", "--storage", "nvme")
    assert zlh(*common, "--template", "fabric").status == 2
    assert zlh(*common, "--template", "fabric=9000", "--closed").out == "pve9 takes no new servers\n"
    assert json.loads(zlh("hosts", "--json").out)["templates"] == {"fabric": 9000}


def test_status_does_not_call_old_news_fine(zlh: Callable[..., Said], home: Path, fleet: Fleet) -> None:
    said = zlh("status", "--json")
    assert said.status == 1  # an open finding
    facts = json.loads(said.out)
    assert facts["findings"][0]["opened_at"].endswith("Z")
    parts = "now level intake_closed paused sweep sources agents servers operations findings reviews backups outbox"
    assert set(facts) == set(parts.split())
    page = (ROOT / "docs" / "json.md").read_text()
    assert "`zlh status`: " + ", ".join(f"`{part}`" for part in parts.split()) in page
    assert "nothing is watched now" in zlh("status").out


def test_status_of_an_empty_house_is_unknown(zlh: Callable[..., Said], home: Path) -> None:
    assert zlh("status").status == 3


def test_what_a_source_says_never_touches_the_verdict_beside_it() -> None:
    server = SimpleNamespace(name="fern", vmid=1, node="pve1", address="10.0.0.1", desired="running")
    found = SimpleNamespace(check="host_down", state="found", detail="", finding=SimpleNamespace(confirmed=True))
    lines = [SimpleNamespace(source="autopilot", says="x" * length, verdicts=[found]) for length in (1, 63, 64, 80)]
    said = SimpleNamespace(server=server, lines=lines, would=[], does_not=[], next=[], commands=[], next_at={})
    assert all("x ← host_down" in line or "x  " in line for line in list(look.explained(said, utc=True))[1:5])


def test_migrating_twice_says_so(zlh: Callable[..., Said], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_DATABASE__URL", f"sqlite+aiosqlite:///{home}/new/zlh.db")
    first = json.loads(zlh("migrate", "--json").out)
    assert first["from"] is None
    assert json.loads(zlh("migrate", "--json").out) == {"from": first["to"], "to": first["to"]}


def test_settings_show_no_secret_and_where_they_come_from(zlh: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_PROXMOX__TOKEN", "hush")
    said = zlh("config", "show", "--sources", "--json")
    rows = {row["setting"]: row for row in map(json.loads, said.out.splitlines())}
    assert "hush" not in said.out
    assert rows["ZLH_PROXMOX__TOKEN"] == {"setting": "ZLH_PROXMOX__TOKEN", "value": "••••", "from": "environment"}
    assert rows["ZLH_DATABASE__URL"]["from"] == "env file"
    assert rows["ZLH_PROXMOX__USER"]["from"] == "default"


def test_what_this_version_cannot_do_says_how_by_hand(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    """A restore names the node's storage: Proxmox would choose ``local``, which takes no containers. And what it restored is stopped, after
    a person's task, so a person starts it."""

    async def known(tx: Tx) -> None:
        await nodes.put(tx, Node("pve2", 65_536, 1_000, 16, "local-zfs", "vmbr1"))

    write(known)
    vmid = json.loads(zlh("servers", "show", "moss", "--json").out)["vmid"]
    before, after = "zlh maintenance on moss", "zlh maintenance off moss"
    copied = [before, f"on pve2: vzdump {vmid} --mode snapshot --compress zstd", after]
    restored = [before, f"on pve2: pct restore {vmid} ARCHIVE --storage local-zfs --force", after, "zlh start moss"]
    for command, steps in (("backup", copied), ("restore", restored)):
        said = zlh(command, "moss")
        assert said.status == 1
        assert "; ".join(steps) in said.err
        said = zlh(command, "moss", "--json")
        assert said.status == 1
        assert json.loads(said.out)["by_hand"] == steps


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("class", "oom", "oom"),
        ("tags", ["game", "zlh"], "game zlh"),
        ("backup_verified_at", None, "none"),
        ("backup_verified_at", 1_700_000_000_000, "2023-11-14 "),
        ("at", 1_700_000_000.25, "2023-11-14 "),
        ("at", 1e300, "1e+300"),
        ("at", float("nan"), "nan"),
    ],
)
def test_whoever_approves_reads_times_as_times(key: str, value: object, shown: str) -> None:
    """``at`` is a crash's, and what an agent says it is."""
    plan = {"evidence": {key: value}}
    row = {"plan": plan, "requested_at": 0, "expires_at": 0, "check": "workload_error", "action": "restart_workload", "requested_by": "x"}
    assert list(reviews.said(row))[2].removeprefix(f"  {key:<20}").startswith(shown)


def test_services_read_the_settings_that_every_command_reads(zlh: Callable[..., Said], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ``zlh up`` in this directory, where nothing is configured."""
    (home / "var" / "up").mkdir(parents=True)
    (home / "var" / "up" / "zlh.env").write_text("ZLH_NONSENSE=1\n")
    monkeypatch.delenv("ZLH_ENV_FILE")
    for command in (("api",), ("dispatch",), ("watchdog", "--json"), ("worker", "drain")):
        said = zlh(*command)
        assert said.status == 2
        assert said.err.startswith("zlh: ZLH_NONSENSE · is no setting")


@pytest.mark.parametrize("left", [0, 2])
def test_a_drain_says_how_many_runs_are_left(zlh: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    async def drained(settings: object, limit_s: float) -> int:
        return left

    monkeypatch.setattr("flows.cli.drain.drain", drained)
    said = zlh("worker", "drain", "--json")
    assert (said.status, json.loads(said.out)) == (int(left > 0), {"left": left})


def test_the_authority_is_made_once(zlh: Callable[..., Said], home: Path) -> None:
    zlh("ca", "init")
    first = (home / "ca" / "ca.pem").read_bytes()
    assert zlh("ca", "init").status == 0
    assert (home / "ca" / "ca.pem").read_bytes() == first


def test_the_settings_page_is_true() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page.page(), "run: zlh config docs > docs/settings.md"


@pytest.mark.parametrize("role", sorted(p.parent.parent for p in (ROOT / "roles").glob("*/meta/argument_specs.yml")), ids=lambda p: p.name)
def test_a_roles_page_is_true(role: Path) -> None:
    assert (role / "README.md").read_text() == role_page.page(role), "run: python -m flows.cli.role_page roles/*"
