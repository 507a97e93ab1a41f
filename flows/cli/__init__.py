"""``zlh``: the operator's command line. Every command maps to one call; a command's module is imported when the command is typed.

Exit status: 0 fine · 1 it says no (findings, refused, failed) · 2 wrong usage · 3 could not look (unknown is not fine).
"""

from __future__ import annotations

from flows.cli.main import main

__all__ = ["main"]
