"""The command tree of ``zlh`` and what every command shares: errors on stderr as *what · why · what to do*, exit status by meaning."""

from __future__ import annotations

import sys

import click
import typer

from flows.cli import brakes, labs, listings, look, orders, people, services
from flows.errors import AutomationError, BadInput, MisconfiguredSetting, Unproven, Unreachable

app = typer.Typer(
    name="zlh",
    help="Runs a small hosting business on Proxmox: provisions, watches, heals, alerts.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
services.add_to(app)
listings.add_to(app)
orders.add_to(app)
brakes.add_to(app)
people.add_to(app)
look.add_to(app)
labs.add_to(app)


def status_of(error: AutomationError) -> int:
    """The exit status that an error means."""
    if isinstance(error, BadInput | MisconfiguredSetting):
        return 2
    return 3 if isinstance(error, Unreachable | Unproven) else 1


def main() -> None:
    """Entry point of the console script."""
    try:
        app(standalone_mode=False)
    except click.exceptions.Exit as error:
        raise SystemExit(error.exit_code) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except click.exceptions.Abort:
        raise SystemExit(130) from None
    except AutomationError as error:
        sys.stderr.write(f"zlh: {error}\n")
        raise SystemExit(status_of(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
