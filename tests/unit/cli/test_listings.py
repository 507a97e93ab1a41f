"""Listings against a real database: filters, ids, what is hidden, and the shape of every ``--json`` row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from sqlalchemy import insert

from flows.cli import listings, output
from flows.cli.nouns import BY_NAME, NOUNS
from flows.settings import PolicySettings
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id

from .conftest import Fleet, Said

TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
SHAPES = {"t": TIME, "s": {"type": "string"}, "i": {"type": "integer"}, "b": {"type": "boolean"}, "o": {"type": "object"}}


def row_of(**fields: str) -> dict[str, Any]:
    """A closed schema. ``t`` time, ``s`` string, ``i`` integer, ``b`` boolean, ``o`` object; ``?`` after it: or null."""

    def one(code: str) -> dict[str, Any]:
        shape = SHAPES[code[0]]
        return {"anyOf": [shape, {"type": "null"}]} if code.endswith("?") else shape

    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(fields),
        "properties": {name.rstrip("_"): one(code) for name, code in fields.items()},
    }


#: The documented rows of ``zlh <noun> --json``, and of ``show --json``: a change here breaks somebody's script.
ROWS = {
    "servers": row_of(
        id="s", name="s", ctype="s", flavor="s", version="s", vmid="i", node="s", address="s", state="s", desired="s", edge="s", memory_mb="i",
        cores="i", disk_gb="i", customer="s", ready="b?", reachable="b?", players="i?", observed_at="t?", operation="s?", step="s?",
        created_at="t", activated_at="t?", deleted_at="t?",
    ),
    "findings": row_of(
        id="s", check="s", subject="s", server="s?", summary="s", reason="s", severity="i", remedy="s", evidence="o", opened_at="t",
        last_seen_at="t", escalated_at="t?", closed_at="t?",
    ),
    "repairs": row_of(
        id="s", check="s", action="s", subject="s", server="s?", host="s?", level="i", counted="b", operation_id="s?", epoch="i", intent_at="t",
        outcome="s?", outcome_at="t?", detail="s",
    ),
    "operations": row_of(
        id="s", kind="s", state="s", server="s", step="s?", attempt="i", attempt_state="s", claimed="i", undo_failures="i", queue="s", actor="s",
        created_at="t", started_at="t?", progress_at="t", deadline_at="t", finished_at="t?", error="o?",
    ),
    "leases": row_of(
        subject="s", server="s?", kind="s?", holder="s?", operation_id="s?", reason="s", token="i", taken_at="t?", heartbeat_at="t?",
        expires_at="t?",
    ),
    "vmids": row_of(vmid="i", state="s", server="s?", server_id="s?", since_at="t", until="t?", reason="s"),
    "hosts": row_of(name="s", open="b", memory_mb="i", disk_gb="i", cores="i", storage="s", bridge="s", templates="o"),
    "tokens": row_of(id="s", role="s", customer="s?", label="s", created_at="t", expires_at="t?", revoked_at="t?"),
    "audit": row_of(id="i", at="t", actor="s", action="s", subject="s", server="s?", operation_id="s?", detail="o"),
    "backups": row_of(id="s", server="s", type="s", reason="s", created_at="t", size_bytes="i", sha256="s", location="s", verified_at="t?"),
    "customers": row_of(id="s", name="s", plan="s", billing="s", created_at="t", servers="i"),
    "reviews": row_of(
        id="s", server="s?", check="s", action="s", plan_hash="s", plan="o", requested_by="s", requested_at="t", expires_at="t", decided_by="s?",
        decided_at="t?", decision="s?",
    ),
    "breakers": row_of(id="s", subject="s", server="s?", node="s?", attempts="i", first_at="t", last_at="t"),
}  # fmt: skip


KINDS = {"t": "time", "s": "text", "i": "integer", "b": "true or false", "o": "object"}


def documented() -> dict[str, dict[str, str]]:
    """What docs/json.md says of each listing: member → its kind."""
    page = (Path(__file__).parents[3] / "docs" / "json.md").read_text()
    sections = re.findall(r"^### `zlh (\S+)`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    return {noun: dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", body, re.MULTILINE)) for noun, body in sections}


def kind(schema: dict[str, Any]) -> str:
    nullable = "anyOf" in schema
    shape = schema["anyOf"][0] if nullable else schema
    return next(KINDS[code] for code, known in SHAPES.items() if known == shape) + (" or null" if nullable else "")


def test_the_page_says_what_every_row_holds() -> None:
    assert documented() == {noun: {name: kind(schema) for name, schema in shape["properties"].items()} for noun, shape in ROWS.items()}


def rows(said: Said) -> list[dict[str, Any]]:
    assert said.status == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


@pytest.mark.parametrize("noun", [n.name for n in NOUNS])
def test_each_row_and_each_show_has_its_documented_shape(zlh: Callable[..., Said], fleet: Fleet, noun: str) -> None:
    found = rows(zlh(noun, "--json", "--all"))
    assert found
    for row in found:
        jsonschema.validate(row, ROWS[noun])
    shown = zlh(noun, "show", str(found[0].get("id") or found[0].get("subject") or found[0].get("vmid") or found[0]["name"]), "--json")
    assert shown.status == 0
    jsonschema.validate(json.loads(shown.out), ROWS[noun])


@pytest.mark.parametrize("noun", [n.name for n in NOUNS])
def test_an_empty_listing_is_no_failure(zlh: Callable[..., Said], noun: str) -> None:
    said = zlh(noun)
    assert (said.status, said.out) == (0, "")
    assert said.err.startswith("no") or "is" in said.err
    assert zlh(noun, "--json").out == ""
    assert zlh(noun, "--all").err == f"no {noun} yet\n"


@pytest.mark.parametrize("noun", [n.name for n in NOUNS])
def test_every_table_prints_its_columns(zlh: Callable[..., Said], fleet: Fleet, noun: str) -> None:
    said = zlh(noun, "--all")
    assert said.status == 0
    title = said.out.splitlines()[0]
    assert all(column in title for column in BY_NAME[noun].columns)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["fern", "moss"]),
        (("--all",), ["fern", "gone", "moss"]),
        (("--host", "pve1"), ["fern"]),
        (("--host", "pve1", "--all"), ["fern", "gone"]),
        (("--state", "active"), ["fern", "moss"]),
        (("--customer", "customer-1"), ["fern"]),
        (("--state", "creating"), []),
        (("--host", "pve1' OR '1'='1"), []),
        (("--since", "1h"), ["fern", "moss"]),
        (("--limit", "1"), ["fern"]),
    ],
)
def test_filters_of_servers(zlh: Callable[..., Said], fleet: Fleet, arguments: tuple[str, ...], names: list[str]) -> None:
    assert [row["name"] for row in rows(zlh("servers", "--json", *arguments))] == names


def test_since_looks_at_the_databases_clock(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert len(rows(zlh("repairs", "--json", "--since", "90s"))) == 1
    assert len(rows(zlh("repairs", "--json", "--since", "1h"))) == 3


def test_hosts_have_no_time_to_filter_by(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert zlh("hosts", "--since", "1h").status == 2


def test_more_rows_than_the_limit_are_announced(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert zlh("repairs", "--limit", "2").err == "there are more than 2: --limit\n"
    assert zlh("repairs", "--limit", "3").err == ""


def test_open_findings_hide_closed_ones(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert [row["id"] for row in rows(zlh("findings", "--json"))] == [fleet.ids["finding"]]
    assert len(rows(zlh("findings", "--json", "--all", "--check", "agent_offline"))) == 2
    assert rows(zlh("findings", "--json", "--check", "dns_record")) == []


def test_a_breaker_is_open_after_three_counted_attempts_within_the_hour(
    zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = rows(zlh("breakers", "--json"))
    assert (row["server"], row["attempts"]) == ("moss", 3)
    monkeypatch.setenv("ZLH_POLICY__BREAKER_ATTEMPTS", "4")
    assert rows(zlh("breakers", "--json")) == []
    assert len(rows(zlh("breakers", "--json", "--all"))) == 1
    monkeypatch.setenv("ZLH_POLICY__BREAKER_WINDOW_S", "90")
    assert [row["attempts"] for row in rows(zlh("breakers", "--json", "--all"))] == [1]


def test_a_breaker_of_what_is_no_server_is_listed_too(zlh: Callable[..., Said], fleet: Fleet, write: Callable[..., Any]) -> None:
    async def fill(tx: Tx) -> None:
        for _ in range(3):
            await tx.execute(
                insert(t.repairs).values(
                    id=new_id(), check="container_orphaned", action="destroy_container", subject="container:10900", host="pve3", level=3,
                    counted=True, epoch=1, intent_at=tx.now, outcome="failed", outcome_at=tx.now,
                )
            )  # fmt: skip

    write(fill)
    found = {row["subject"]: row for row in rows(zlh("breakers", "--json"))}
    assert set(found) == {fleet.ids["moss"], "container:10900"}
    orphan = found["container:10900"]
    assert (orphan["id"], orphan["server"], orphan["node"], orphan["attempts"]) == ("container:10900", None, "pve3", 3)
    assert [row["subject"] for row in rows(zlh("breakers", "--json", "--host", "pve3"))] == ["container:10900"]
    assert zlh("breakers", "show", "container:10900").status == 0
    assert "container:10900" in zlh("breakers").out


def test_the_breakers_defaults_are_those_of_the_settings() -> None:
    policy = PolicySettings()
    assert (policy.breaker_window_s, policy.breaker_attempts) == listings.BREAKER


@pytest.mark.parametrize("given", [lambda i: "fern", lambda i: i, lambda i: i[:-1], lambda i: i[-6:]])
def test_a_server_is_named_by_name_id_beginning_or_end(zlh: Callable[..., Said], fleet: Fleet, given: Callable[[str], str]) -> None:
    said = zlh("servers", "show", given(fleet.ids["fern"]), "--json")
    assert json.loads(said.out)["name"] == "fern"


def test_an_ambiguous_beginning_is_wrong_usage(zlh: Callable[..., Said], fleet: Fleet) -> None:
    said = zlh("servers", "show", fleet.ids["fern"][:6])
    assert (said.status, said.out) == (2, "")
    assert "3 ids begin or end so · give more of the id" in said.err


@pytest.mark.parametrize("noun", [n.name for n in NOUNS])
@pytest.mark.parametrize("given", ["", " "])
def test_nothing_names_nothing(zlh: Callable[..., Said], fleet: Fleet, noun: str, given: str) -> None:
    said = zlh(noun, "show", given)
    assert (said.status, said.out) == (2, "")
    assert "is empty · give its " in said.err


def test_a_single_row_still_needs_enough_of_its_id(zlh: Callable[..., Said], fleet: Fleet) -> None:
    for part in (fleet.ids["backup"][:1], fleet.ids["backup"][-3:]):
        said = zlh("backups", "show", part)
        assert (said.status, said.out) == (2, "")
        assert "of an id 4 characters are needed" in said.err


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        (("delete", "--yes", "{}"), "fern"),
        (("stop", "{}"), "fern"),
        (("restart", "{}"), "fern"),
        (("customers", "suspend", "--yes", "{}"), "customer"),
        (("token", "revoke", "{}"), "token"),
        (("operations", "cancel", "{}"), "operation"),
    ],
)
def test_what_hurts_needs_more_of_an_id(zlh: Callable[..., Said], fleet: Fleet, arguments: tuple[str, ...], row: str) -> None:
    said = zlh(*(word.format(fleet.ids[row][-7:]) for word in arguments))
    assert (said.status, said.out) == (2, "")
    assert "of an id 8 characters are needed" in said.err


def test_a_token_is_revoked_by_the_id_that_listings_show(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert zlh("token", "revoke", fleet.ids["token"][-8:]).out == f"revoked {fleet.ids['token']}\n"


@pytest.mark.parametrize("given", ["99999999999999999999999", "²", "٣"])
def test_a_number_that_no_database_has_is_a_no(zlh: Callable[..., Said], fleet: Fleet, given: str) -> None:
    assert zlh("audit", "show", given).status == 1


@pytest.mark.parametrize("given", ["nix", "%", "____", "'"])
def test_what_is_not_there_is_a_no(zlh: Callable[..., Said], fleet: Fleet, given: str) -> None:
    said = zlh("servers", "show", given)
    assert said.status == 1
    assert said.err == f"zlh: server {given} · there is none · zlh servers --all\n"


def test_an_audit_line_is_named_by_its_whole_number(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert json.loads(zlh("audit", "show", "1", "--json").out)["id"] == 1
    assert zlh("audit", "show", "99999").status == 1
    assert zlh("audit", "show", "one").status == 1


def test_a_lease_is_shown_by_its_servers_name(zlh: Callable[..., Said], fleet: Fleet) -> None:
    assert json.loads(zlh("leases", "show", "fern", "--json").out)["subject"] == fleet.ids["fern"]


def test_a_lease_that_was_given_back_has_no_end(zlh: Callable[..., Said], fleet: Fleet) -> None:
    zlh("maintenance", "on", "moss", "--yes")
    zlh("maintenance", "off", "moss", "--yes")
    shown = json.loads(zlh("leases", "show", "moss", "--json").out)
    jsonschema.validate(shown, ROWS["leases"])
    assert (shown["expires_at"], shown["holder"]) == (None, None)
    assert "1970" not in zlh("leases", "show", "moss").out
    assert " free " in next(line for line in zlh("leases", "--all").out.splitlines() if line.startswith("moss"))


def test_times_in_utc_on_request(zlh: Callable[..., Said], fleet: Fleet) -> None:
    def hour(*arguments: str) -> int:
        shown = {line.split()[0]: line.split()[-1] for line in zlh("servers", "show", "fern", *arguments).out.splitlines() if len(line.split()) > 1}
        return int(shown["created_at"].split(":")[0])

    import time

    time.tzset()
    assert (hour() - hour("--utc")) % 24 in (1, 2)


def test_no_database_is_not_no_servers(zlh: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_DATABASE__URL", "sqlite+aiosqlite:////nowhere/zlh.db")
    said = zlh("servers")
    assert (said.status, said.out) == (3, "")
    assert "unable to open database file" in said.err


def test_a_database_without_tables_says_what_to_do(zlh: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, home: Any) -> None:
    (home / "empty.db").touch()
    monkeypatch.setenv("ZLH_DATABASE__URL", f"sqlite+aiosqlite:///{home}/empty.db")
    said = zlh("servers")
    assert said.status == 3
    assert "no such table: servers · check ZLH_DATABASE__URL; zlh migrate makes the tables" in said.err


def test_the_url_may_come_from_a_file(zlh: Callable[..., Said], fleet: Fleet, home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "url").write_text(f"sqlite+aiosqlite:///{home}/zlh.db\n")
    (home / "zlh.env").write_text("")
    monkeypatch.setenv("ZLH_DATABASE__URL_FILE", str(home / "url"))
    assert len(rows(zlh("servers", "--json"))) == 2


def test_a_shell_completes_live_names(fleet: Fleet) -> None:
    assert listings.complete_server("") == ["fern", "moss"]
    assert listings.complete_server("m") == ["moss"]
    assert listings.complete_server("%") == []
    assert listings.complete_customer("customer-1") == ["customer-1"]
    assert listings.complete_host("pve") == ["pve1", "pve2"]
    assert listings.complete_operation("") == [fleet.ids["operation"]]


def test_a_shell_gets_no_error_to_print(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_DATABASE__URL", "sqlite+aiosqlite:////nowhere/zlh.db")
    assert listings.complete_server("f") == []


def test_bash_completes_a_servers_name_through_the_program(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli.main import run

    monkeypatch.setenv("_ZLH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "zlh restart m")
    monkeypatch.setenv("COMP_CWORD", "2")
    run([])
    assert capsys.readouterr().out.split() == ["moss"]


@pytest.mark.parametrize(("room", "widths"), [(80, [4, 20, 30]), (40, [4, 16, 16]), (10, [4, 8, 9])])
def test_a_table_gives_room_from_its_widest_column(room: int, widths: list[int]) -> None:
    assert output.fitting([4, 20, 30], [4, 4, 9], room) == widths
