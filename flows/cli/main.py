"""Entry point of ``zlh``, and what every command shares: errors on stderr as *what · why · what to do*, exit status by meaning."""

from __future__ import annotations

import os
import sys

import typer
from typer.exceptions import TyperException

from flows.cli.commands import Commands
from flows.errors import AutomationError, BadInput, Busy, MisconfiguredSetting, RateLimited, Temporary

app = typer.Typer(
    name="zlh",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """Runs a small hosting business on Proxmox: provisions, watches, heals, alerts.

    Exit status: 0 fine, 1 it says no, 2 wrong usage, 3 could not look.
    """


def status_of(error: AutomationError) -> int:
    """The exit status that an error means."""
    if isinstance(error, BadInput | MisconfiguredSetting):
        return 2
    return 3 if isinstance(error, Temporary) and not isinstance(error, Busy | RateLimited) else 1


def main() -> None:
    """Runs the command line; no traceback for what people or peers do."""
    try:
        status = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has enough, as head does. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    raise SystemExit(status)


def run(arguments: list[str] | None = None) -> int:
    """The exit status; ``arguments`` None: those of the process."""
    try:
        result = app(arguments, prog_name="zlh", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except TyperException as error:
        return _usage(error)
    except AutomationError as error:
        sys.stderr.write(f"zlh: {error}\n")
        return status_of(error)
    except BrokenPipeError:
        raise
    except OSError as error:  # a path that a person gave, in an option or a setting
        sys.stderr.write(f"zlh: {error.filename or 'system'} · {error.strerror or error} · check that it exists and that this user may write it\n")
        return 3
    return result if isinstance(result, int) else 0


def _usage(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "zlh"
    said = error.format_message() if hasattr(error, "format_message") else str(error)
    if "\n" in said:  # a group without its command: its help
        sys.stderr.write(said + "\n")
    elif said:
        sys.stderr.write(f"zlh: {said.rstrip('.')} · {command} --help\n")
    return 2
