"""``zlh lab up|down|status|fault``: a fleet without Proxmox by itself, simulated or of real containers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import output, session

Dir = Annotated[Path | None, typer.Option("--dir", help="directory of its state; default: that of the zlh up which the settings come from")]
Fleet = Annotated[
    str | None, typer.Option("--fleet", help="sim: records, no root; lxc: real containers, as root on Debian; default: as the last time, else sim")
]
TARGETS = "proxmox, agents, agent:<vmid>, bridge, dns, discord, artifacts, runner; ct:<vmid>, node:<name>, dns:<name>; with --clear: a fault's id"
MODES = (
    "unreachable, error, slow, hold, hang, lose_answer, rights_lost, partial, fail_task, die_locked, no_quorum, token_expired; or what is done to "
    "the fleet itself: agent kill, freeze, revive, crash; ct start, stop, die, destroy, lock, unlock; node down, up; dns:<name> drop, corrupt, "
    "duplicate; restart of a part"
)


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help="A fleet without Proxmox: its API, agents, proxy, DNS, Discord, artifacts; simulated, or on real containers.", no_args_is_help=True
    )
    group.command("up")(up)
    group.command("down")(down)
    group.command("status")(status)
    group.command("fault")(fault)
    app.add_typer(group, name="lab")


def _home(given: Path | None) -> Path:
    """The fleet that ``zlh up`` runs beside its env file, so that faults reach it."""
    if given is not None:
        return given
    env_file = session.environ().get("ZLH_ENV_FILE")
    return (Path(env_file) if env_file else session.LOCAL_ENV).parent / "lab"


def up(directory: Dir = None, fleet: Fleet = None, json: output.Json = False) -> None:
    """Start the fleet and print how the product reaches it. The first start of real containers builds their image: 2 to 4 minutes."""
    from flows.cli.stack import PROJECT
    from flows.lab import launch

    state = launch.up(_home(directory), project_dir=PROJECT, fleet=fleet, say=None if json else output.text)
    if json:
        output.data(launch.status(_home(directory)))
        return
    output.text(f"the lab runs fleet {state.fleet} (process {state.pid}); control API {state.control_url}")
    for name, points in state.endpoints.items():
        output.text(f"  {name:<10}" + "  ".join(str(v) for v in points.values()))
    output.text("its settings for the product: zlh up uses them by itself")


def down(directory: Dir = None, json: output.Json = False) -> None:
    """End it; harmless when none runs. Of real containers nothing stays on the machine, not even after a kill."""
    from flows.lab import launch

    ended = launch.down(_home(directory))
    output.data({"ended": ended}) if json else output.text("the lab has ended" if ended else "no lab ran here")


def status(directory: Dir = None, json: output.Json = False) -> None:
    """What runs, and which faults are armed. Exit 1 when it does not run."""
    from flows.lab import launch

    found = launch.status(_home(directory))
    if json:
        output.data(found)
    elif found["running"]:
        output.text(
            f"fleet {found['fleet']} runs as process {found['pid']}: {found['containers']['running']} of {found['containers']['all']} containers run"
        )
        output.table(found["faults"], ("id", "target", "mode", "call", "hits", "count"), "no faults armed")
    else:
        output.text("does not run: zlh lab up")
    raise SystemExit(0 if found["running"] else 1)


def fault(
    target: Annotated[str | None, typer.Argument(help=TARGETS)] = None,
    mode: Annotated[str | None, typer.Argument(help=MODES)] = None,
    call: Annotated[str, typer.Option(help="only calls like this: a glob over METHOD /path")] = "*",
    count: Annotated[int | None, typer.Option(help="ends after so many hits")] = None,
    lasting: Annotated[str | None, typer.Option("--for", help="ends after this time: 30s, 2m")] = None,
    seconds: Annotated[float, typer.Option(help="how slow is slow")] = 5.0,
    value: Annotated[str | None, typer.Option(help="a record's address (corrupt, duplicate), a lock's kind, a crash's reason")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="end the fault with this id, those of this target, or all")] = False,
    directory: Dir = None,
    json: output.Json = False,
) -> None:
    """Break something on purpose."""
    from flows.errors import BadInput
    from flows.lab import deeds, launch

    home, again = _home(directory), "" if directory is None else f" --dir {shlex.quote(str(directory))}"
    if clear:
        if mode is not None:
            raise BadInput("MODE", mode, why="--clear takes an id, a target, or nothing", remedy="leave it out")
        by_id = target is not None and target.isascii() and target.isdecimal()
        ended = launch.clear(home, int(target or 0) if by_id else None, target=None if by_id else target)
        output.data({"ended": ended}) if json else output.text(f"ended {ended} faults")
        return
    if target is None or mode is None:
        raise BadInput("TARGET MODE", "missing", why="both are needed", remedy=f"targets: {TARGETS}; modes: {MODES}")
    options: dict[str, Any] = {"call": call, "seconds": seconds}
    if count is not None:
        options["count"] = count
    if lasting is not None:
        options["for_s"] = output.seconds(lasting, "--for")
    done = launch.meddle(home, target, mode, value)
    if done is not None:
        undo = deeds.UNDONE_BY.get(mode)
        output.data(done) if json else output.text(
            f"{target}: {mode} done" + (f"; take it back: zlh lab fault {target} {undo}{again}" if undo else "")
        )
        return
    armed = launch.fault(home, target, mode, **options)
    output.data(armed) if json else output.text(f"fault {armed['id']}: {target} {mode}; end it: zlh lab fault --clear {armed['id']}{again}")
