"""Settings: which layer wins, and what is refused, by the variable's name and with what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from flows.domain.readiness import FRESH_MS
from flows.environment import read_env_file
from flows.errors import MisconfiguredSetting
from flows.settings import Settings, fields, load


def layers(tmp_path: Path, *, env_file: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    path = tmp_path / "zlh.env"
    path.write_text("".join(f"{key}={value}\n" for key, value in env_file.items()))
    assert read_env_file(path) == dict(env_file)
    return {"ZLH_ENV_FILE": str(path), **environment}


def refusal(**variables: str) -> MisconfiguredSetting:
    with pytest.raises(MisconfiguredSetting) as caught:
        load({f"ZLH_{name}": value for name, value in variables.items()})
    return caught.value


def test_the_defaults_are_settings() -> None:
    assert load({}) == Settings()


def test_every_setting_has_a_default_and_says_what_it_is() -> None:
    for variable, path, field in fields():
        assert not field.is_required() and field.description, (variable, path)


#: Numbers that are counts, or whose unit their own name is.
COUNTS = {
    "database.pool_size", "api.requests_per_minute", "agent.port", "agent.concurrency", "proxy.player_port", "notify.fold_over", "notify.fold_named",
    "notify.business_days", "ansible.node_port", "topology.workers", "vmid.first", "vmid.last", "timing.step_factor", "watchdog.intervals",
}  # fmt: skip
UNITS = ("_s", "_mb", "_gb", "_bytes", "_days", "_fraction", "_min", "_per_hour")


def test_every_number_has_a_unit_or_is_a_count() -> None:
    for variable, path, field in fields():
        if field.annotation in (int, float) and path not in COUNTS and not path.startswith("policy."):
            assert path.endswith(UNITS), variable
        if path.startswith("policy.") and field.annotation is float:
            assert path.endswith(("_s", "_fraction")), variable
        if path.endswith("_s") and field.annotation in (int, float):
            assert "econds" in field.description or "TTL" in field.description, variable
    assert {path for _, path, _ in fields()} >= COUNTS


def test_a_sweep_is_never_rarer_than_what_it_saw_is_believed() -> None:
    """An observation is believed for 150 s: with sweeps further apart than half of that one late sweep would close every server to players."""
    assert refusal(TIMING__SWEEP_S="76").what == "ZLH_TIMING__SWEEP_S"
    assert load({"ZLH_TIMING__SWEEP_S": "75"}).timing.sweep_s * 2_000 <= FRESH_MS


TOKEN = "ZLH_API__ADMIN_TOKEN"


@pytest.mark.parametrize(
    ("env_file", "environment", "expected"),
    [
        ((), (), ""),
        (("plain",), (), "plain of env_file"),
        (("file",), (), "file of env_file"),
        ((), ("file",), "file of environment"),
        (("plain",), ("plain",), "plain of environment"),
        (("plain",), ("file",), "file of environment"),
        (("file",), ("plain",), "plain of environment"),
        (("file",), ("file",), "file of environment"),
    ],
)
def test_the_environment_comes_before_the_env_file_however_it_says_it(
    tmp_path: Path, env_file: tuple[str, ...], environment: tuple[str, ...], expected: str
) -> None:
    def layer(name: str, kinds: tuple[str, ...]) -> dict[str, str]:
        secret = tmp_path / name
        secret.write_text(f"file of {name}\n")
        return {TOKEN if kind == "plain" else f"{TOKEN}_FILE": f"plain of {name}" if kind == "plain" else str(secret) for kind in kinds}

    given = layers(tmp_path, env_file=layer("env_file", env_file), environment=layer("environment", environment))
    assert load(given).api.admin_token.get_secret_value() == expected


@pytest.mark.parametrize("where", ["env_file", "environment"])
def test_a_secret_said_twice_in_one_place_is_refused(tmp_path: Path, where: str) -> None:
    twice = {TOKEN: "a", f"{TOKEN}_FILE": str(tmp_path / "secret")}
    with pytest.raises(MisconfiguredSetting, match=f"{TOKEN}.*both") as caught:
        load(layers(tmp_path, **{"env_file": {}, "environment": {}, where: twice}))
    assert "remove one" in str(caught.value)


def test_a_secrets_file_that_is_overridden_is_not_read(tmp_path: Path) -> None:
    given = layers(tmp_path, env_file={f"{TOKEN}_FILE": "/nowhere"}, environment={TOKEN: "fromenv"})
    assert load(given).api.admin_token.get_secret_value() == "fromenv"
    with pytest.raises(MisconfiguredSetting, match=f"{TOKEN}_FILE"):
        load({f"{TOKEN}_FILE": "/nowhere"})


@pytest.mark.parametrize(
    ("variable", "near"), [("ZLH_API__ADMIN_TOKN", TOKEN), ("ZLH_DNS__ZONE_FILE", "ZLH_DNS__ZONE"), ("ZLH_X", "docs/settings.md")]
)
def test_an_unknown_variable_is_refused_by_name(tmp_path: Path, variable: str, near: str) -> None:
    for given in ({variable: "x"}, layers(tmp_path, env_file={variable: "x"}, environment={})):
        with pytest.raises(MisconfiguredSetting, match=variable) as caught:
            load(given)
        assert near in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("NETWORK__POOL", "10.20.0.1/16", "10.20.0.0/16"),
        ("NETWORK__POOL", "the cellar", "10.20.0.0/16"),
        ("NETWORK__GATEWAY", "10.21.0.1", "10.20.0.0/16"),
        ("NETWORK__GATEWAY", "10.20.0.0", "10.20.0.0/16"),
        ("NETWORK__GATEWAY", "10.20.255.255", "10.20.0.0/16"),
        ("NETWORK__GATEWAY", "gateway", "10.20.0.0/16"),
        ("NETWORK__GATEWAY", "fe80::1", "10.20.0.0/16"),
        ("NETWORK__FIRST", "10.21.0.11", "10.20.0.0/16"),
        ("NETWORK__FIRST", "10.20.0.0", "10.20.0.0/16"),
        ("NETWORK__FIRST", "first", "10.20.0.0/16"),
        ("NETWORK__CONTROL_ADDRESSES", '10.0.0.1" command="x', "10.20.0.2"),
        ("NETWORK__CONTROL_ADDRESSES", 'fe80::1%a" command="x', "10.20.0.2"),
        ("NETWORK__CONTROL_ADDRESSES", "10.0.0.1,controller", "10.20.0.2"),
        ("NETWORK__CONTROL_ADDRESSES", "10.0.0.1/24", "10.20.0.2"),
        ("NETWORK__CONTROL_ADDRESSES", "10.0.0.0/255.255.255.0", "10.20.0.2"),
        ("VMID__LAST", "9999", "ZLH_VMID__FIRST"),
        ("VMID__FIRST", "20000", "ZLH_VMID__FIRST"),
        ("ARTIFACTS__URL", "http://artifacts.example:8770", "10.0.0.22"),
        ("ARTIFACTS__URL", "10.0.0.22:8770", "10.0.0.22"),
        ("ARTIFACTS__URL", "http://10.0.0.22:99999", "10.0.0.22"),
        ("ARTIFACTS__URL", "ftp://10.0.0.22", "10.0.0.22"),
        ("ARTIFACTS__URL", "http://user:secret@10.0.0.22", "10.0.0.22"),
        ("ENGINE__URL", "http://prefect.example:4200/api", "127.0.0.1"),
        ("ENGINE__URL", "127.0.0.1:4200", "127.0.0.1"),
        ("API__CONTROL_BIND", "0.0.0.0:8701", "10.20.0.2:8701"),
        ("API__CONTROL_BIND", "[::]:8701", "10.20.0.2:8701"),
        ("API__CONTROL_BIND", "[::ffff:0.0.0.0]:8701", "10.20.0.2:8701"),
        ("API__CONTROL_BIND", ":8701", "10.20.0.2:8701"),
        ("API__CONTROL_BIND", "0:8701", "10.20.0.2:8701"),
        ("API__CONTROL_BIND", "controller:8701", "10.20.0.2:8701"),
        ("API__CONTROL_BIND", "127.0.0.1", "10.20.0.2:8701"),
        ("NOTIFY__TIMEZONE", "Europe/Atlantis", "Europe/Berlin"),
        ("NOTIFY__TIMEZONE", "../../etc/passwd", "Europe/Berlin"),
        ("NOTIFY__TIMEZONE", "", "Europe/Berlin"),
        ("NOTIFY__BUSINESS_FROM", "9", "HH:MM"),
        ("NOTIFY__BUSINESS_TO", "24:01", "HH:MM"),
        ("NOTIFY__QUIET_FROM", "23:60", "HH:MM"),
        ("NOTIFY__QUIET_TO", "seven", "HH:MM"),
        ("NOTIFY__BUSINESS_DAYS", "0,7", "0 (Monday)"),
        ("NOTIFY__MAIL_SEVERITIES", "critical,urgent", "info, warning, critical"),
        ("PROXMOX__TIMEOUT_S", "31", "ZLH_TIMING__CALL_S"),
        ("TIMING__CALL_S", "45", "ZLH_TIMING__LEASE_S"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_remedy(variable: str, value: str, remedy: str) -> None:
    said = str(refusal(**{variable: value}))
    assert remedy in said
    assert (
        "ZLH_VMID__LAST" if variable.startswith("VMID") else "ZLH_TIMING__LEASE_S" if variable.startswith("TIMING") else f"ZLH_{variable}"
    ) in said


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NETWORK__FIRST", "10.20.0.50"),
        ("NETWORK__CONTROL_ADDRESSES", "10.0.0.1,10.0.1.0/24,fd00::1,fd00::/64"),
        ("VMID__LAST", "10000"),
        ("ARTIFACTS__URL", "https://[fd00::22]:8770/files"),
        ("ENGINE__URL", "http://localhost:4200/api"),
        ("ENGINE__URL", "http://[::1]:4200/api"),
        ("API__CONTROL_BIND", "[fd00::2]:8701"),
        ("API__CONTROL_BIND", "127.0.0.1:0"),
        ("NOTIFY__TIMEZONE", "America/New_York"),
        ("NOTIFY__QUIET_TO", "24:00"),
        ("NOTIFY__MAIL_SEVERITIES", "info,warning,critical"),
        ("NOTIFY__MAIL_SEVERITIES", ""),
    ],
)
def test_what_is_as_it_should_be_is_taken(variable: str, value: str) -> None:
    load({f"ZLH_{variable}": value})


def test_what_is_written_into_authorized_keys_names_the_controller() -> None:
    """A key without ``from=`` opens every container to whoever holds it."""
    said = str(refusal(ANSIBLE__PRIVATE_KEY="/var/lib/zlh/.ssh/id_ed25519"))
    assert "ZLH_NETWORK__CONTROL_ADDRESSES" in said and "10.20.0.2" in said
    load({"ZLH_ANSIBLE__PRIVATE_KEY": "/k", "ZLH_NETWORK__CONTROL_ADDRESSES": "10.20.0.2"})
    load({"ZLH_ANSIBLE__PRIVATE_KEY": "/k", "ZLH_ANSIBLE__RUNNER": "lab"})


def test_a_call_to_proxmox_never_outlives_what_a_lease_allows_for() -> None:
    short = {"ZLH_TIMING__CALL_S": "8", "ZLH_TIMING__LEASE_S": "30"}
    assert load(short).proxmox.timeout_s == 8.0, "where nobody says how long a call may take, the lease does"
    assert load(short | {"ZLH_PROXMOX__TIMEOUT_S": "8"}).proxmox.timeout_s == 8.0
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__TIMEOUT_S"):
        load(short | {"ZLH_PROXMOX__TIMEOUT_S": "8.5"})


def test_a_refusal_does_not_show_a_secret() -> None:
    with pytest.raises(MisconfiguredSetting) as caught:
        load({"ZLH_API__ADMIN_TOKEN": "geheim", "ZLH_API__REQUESTS_PER_MINUTE": "0"})
    assert "geheim" not in str(caught.value) and "ZLH_API__REQUESTS_PER_MINUTE" in str(caught.value)


def test_every_variable_that_is_named_is_a_setting() -> None:
    """In the program and in the pages: ``ZLH_A__B``, also within a sentence; of a name that is put together, its beginning."""
    root = Path(__file__).parents[2]
    known = {variable for variable, _, _ in fields()}
    known |= {f"{name}_FILE" for name in known} | {"ZLH_ENV_FILE", "ZLH_LAB_DIRECTORY"}
    pages = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("flows/**/*.py"), *root.glob("roles/**/*.yml"), *root.glob("playbooks/**/*")]
    named = {(p, name) for p in pages if p.is_file() and p.suffix != ".pyc" for name in re.findall(r"ZLH_[A-Z0-9]+(?:_+[A-Z0-9]+)*", p.read_text())}
    assert len(named) > 200
    wrong = [f"{p.relative_to(root)}: {name}" for p, name in sorted(named) if not any(k.startswith(name) for k in known)]
    assert wrong == []


@pytest.mark.parametrize("page", ["docs/install.md"])
def test_the_least_that_the_manual_sets_is_taken(page: str, tmp_path: Path) -> None:
    lines = [line.strip() for line in (Path(__file__).parents[2] / page).read_text().splitlines() if line.startswith("    ZLH_")]
    given = dict(line.split("=", 1) for line in lines if "_FILE=" not in line)
    assert len(given) > 10
    load(given)
