"""`zlh`: the operator's command line. Every command maps to one call."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    raise SystemExit("zlh: no commands yet")
