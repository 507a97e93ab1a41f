"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database-url", default=None, help="database for the tests of flows/state (or ZLH_TEST_DATABASE_URL); default: a SQLite file each"
    )
