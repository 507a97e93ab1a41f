"""Options of the whole suite."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.support import servers

_SERVER = pytest.StashKey[servers.DatabaseServer]()
#: Files that take longer than a minute, longest first: what begins last should be short. All else keeps its order behind them.
LONG = (
    "tests/lab/test_house.py",
    "tests/e2e/test_kills.py",
    "tests/e2e/test_engine.py",
    "tests/integration/test_kill_matrix.py",
    "tests/lab/test_inventories.py",
    "tests/lab/test_agent_role.py",
    "tests/lab/test_roles.py",
    "tests/integration/test_provisioning_faults.py",
    "tests/lab/test_agent.py",
    "tests/integration/test_databases_races.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Ansible refuses a standard input that does not block, and some program of an earlier test may have left the shared one so."""
    os.set_blocking(0, True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, and for ``--dist loadgroup`` each file on one worker, since its fixtures are the module's, unless it says otherwise."""
    rank = {name: n for n, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(_file(item), len(rank)))
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_file(item)))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database-url", default=None, help="database for the tests of flows/state (or ZLH_TEST_DATABASE_URL); default: a SQLite file each"
    )
    parser.addoption(
        "--database-server",
        default=None,
        choices=sorted(servers.DATABASES),
        help="a server of that kind for the tests of flows/state, started for them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """One server for the whole run, with one database for each of xdist's workers."""
    given = getattr(config, "workerinput", {}).get("database_url")
    if given is not None:
        config.option.database_url = given
        return
    kind = config.getoption("--database-server")
    if kind is None:
        return
    made = servers.DATABASES[kind]
    if made.program() is None:
        raise pytest.UsageError(f"--database-server {kind}: it is not installed; playbooks/lab.yml installs it")
    started = made()
    config.add_cleanup(started.close)
    started.start()
    config.stash[_SERVER] = started
    config.option.database_url = started.create("zlh_main")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: before a worker begins."""
    server = node.config.stash.get(_SERVER, None)
    if server is not None:
        node.workerinput["database_url"] = server.create(f"zlh_{node.workerinput['workerid']}")
