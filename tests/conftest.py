"""Options of the whole suite."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.support")  # what tests share says what it saw, too

from tests.support import servers, spread  # noqa: E402 - rewritten when it is imported

_SERVER = pytest.StashKey[servers.DatabaseServer]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Ansible refuses a standard input that does not block, and some program of an earlier test may have left the shared one so."""
    os.set_blocking(0, True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    spread.longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return spread.scheduler(config, log)


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
