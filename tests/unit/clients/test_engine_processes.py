"""Environments and command lines of the engine's processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.clients.engine_processes import server_argv, server_env, worker_argv, worker_env
from flows.clients.engine_setup import QUEUE_LIMITS, Healing, healing_automations, rendered
from flows.domain.operation import DEPLOYMENT_OF, Queue
from flows.errors import MisconfiguredSetting
from flows.settings import EngineSettings

SETTINGS = EngineSettings(url="http://127.0.0.1:4321/api/", auth=SecretStr("zlh:geheim"))
CALLER = {"PATH": "/bin", "HOME": "/root", "PREFECT_API_URL": "https://elsewhere", "PREFECT_PROFILE": "mine", "ZLH_PROXMOX__TOKEN": "secret"}


def test_the_server_listens_where_we_call_and_asks_nobody_outside(tmp_path: Path) -> None:
    env = server_env(tmp_path, SETTINGS, CALLER)
    assert (env["PREFECT_SERVER_API_HOST"], env["PREFECT_SERVER_API_PORT"]) == ("127.0.0.1", "4321")
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert env["PREFECT_SERVER_API_AUTH_STRING"] == env["PREFECT_API_AUTH_STRING"] == "zlh:geheim"
    assert env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert env["DO_NOT_TRACK"] == "1"
    assert "PREFECT_PROFILE" not in env
    assert not [key for key in env if key.startswith("ZLH_")], "the server needs none of our secrets"


def test_the_worker_keeps_our_settings_and_drops_a_developers_profile(tmp_path: Path) -> None:
    env = worker_env(tmp_path, SETTINGS, CALLER)
    assert env["ZLH_PROXMOX__TOKEN"] == "secret"
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert "PREFECT_PROFILE" not in env
    assert env["PREFECT_WORKER_QUERY_SECONDS"] == "1"
    assert "PREFECT_SERVER_API_AUTH_STRING" not in env


def test_no_secret_is_in_an_argv() -> None:
    argv = server_argv() + worker_argv(SETTINGS, name="w", queues=tuple(Queue), limit=4)
    assert "geheim" not in " ".join(argv)
    assert argv.count("--work-queue") == 4
    assert argv[argv.index("--prefetch-seconds") + 1] == "0"


def test_every_setting_of_ours_is_one_of_prefects(tmp_path: Path) -> None:
    """Prefect reads them all; a name that it does not know would be ignored without a word."""
    env = {**server_env(tmp_path, SETTINGS), **worker_env(tmp_path, SETTINGS)}
    names = [key for key in env if key.startswith("PREFECT_") and key not in ("PREFECT_CLI_PROMPT", "PREFECT_HOME")]
    code = (
        "import sys; from prefect.settings import get_current_settings as s; "
        "shown = s().to_environment_variables(include_secrets=True, exclude_unset=True); "
        "print([n for n in sys.argv[1:] if n not in shown])"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], env={**env, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_collector_runs_beside_the_event_loop() -> None:
    code = (
        "import gc, time, weakref, threading\n"
        "from flows.clients import engine_server\n"
        "engine_server.COLLECT_S = 0.05\n"
        "engine_server.collect_aside()\n"
        "class Node: pass\n"
        "node = Node(); node.me = node; seen = []\n"
        "weakref.finalize(node, lambda: seen.append(threading.current_thread().name)); del node\n"
        "end = time.monotonic() + 10\n"
        "while not seen and time.monotonic() < end: time.sleep(0.01)\n"
        "print(gc.isenabled(), seen)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False ['garbage']"


def test_prefect_yaml_is_rendered_for_one_installation() -> None:
    config = rendered(Path("prefect.yaml"), pool="other", interval_s=10)
    assert {d["work_pool"]["name"] for d in config["deployments"]} == {"other"}
    assert {d["name"] for d in config["deployments"]} == {"reconcile", "digest", "post-migration", "approve", *DEPLOYMENT_OF.values()}
    assert {d["work_pool"]["work_queue_name"] for d in config["deployments"]} <= set(Queue)
    (sweep,) = next(d for d in config["deployments"] if d["name"] == "reconcile")["schedules"]
    assert (sweep["interval"], sweep["anchor_date"]) == (10, "2025-01-01T00:00:00+00:00")
    assert config["pull"] == []
    assert all(":" not in d["entrypoint"] and d["entrypoint"].startswith("flows.") for d in config["deployments"])


def test_a_placeholder_is_refused(tmp_path: Path) -> None:
    """Prefect would store it literally and report success."""
    file = tmp_path / "prefect.yaml"
    file.write_text("deployments: [{name: x, work_pool: {name: '{{ $POOL }}'}}]")
    with pytest.raises(MisconfiguredSetting, match="placeholder"):
        rendered(file, pool="zlh", interval_s=None)


def test_limits_and_healing() -> None:
    assert QUEUE_LIMITS == {Queue.PROVISIONING: 1, Queue.OPERATIONS: 8, Queue.REPAIRS: 4, Queue.RECONCILE: None}
    silent, never = healing_automations(Healing(heartbeat_s=90, pending_s=60))
    assert silent["trigger"]["within"] == 90
    assert "prefect.flow-run.heartbeat" in silent["trigger"]["expect"]
    assert never["trigger"]["after"] == ["prefect.flow-run.Pending"]
    assert all(a["actions"][0]["state"] == "CRASHED" for a in (silent, never))
