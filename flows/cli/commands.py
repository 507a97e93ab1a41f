"""The table of commands: what ``zlh --help`` shows, and which modules hold them. They are imported when a command is typed, so that
``zlh --help`` and the listings start fast. A test proves that the table names every command that the modules add, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

#: section → command → (its first sentence, modules of ``flows.cli`` that add to it)
SECTIONS: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "Run it here": {
        "up": ("Run the whole control plane here.", ("services",)),
        "demo": ("Provision servers, break things, show each fault seen and healed.", ("services",)),
        "lab": ("A fleet on this machine, simulated or of real containers, and faults on purpose.", ("labs",)),
        "simulate": ("Simulate the controllers in virtual time, with faults.", ("simulate",)),
    },
    "Look": {
        "status": ("One screen: automation, sources, fleet, findings, queues.", ("look",)),
        "explain": ("One server: what each source says, what automation would do and why not.", ("look",)),
        "validate": ("Is the state consistent? Database, workers; on request one controlled creation.", ("validate",)),
        "doctor": ("Rights, reachability, versions and clocks of everything needed.", ("look",)),
        "reconcile": ("One sweep from here, or with --dry-run its plan.", ("look",)),
        "servers": ("What customers own.", ("listings",)),
        "findings": ("What is not as it should be, and why it is not being repaired.", ("listings",)),
        "repairs": ("What the controller did.", ("listings",)),
        "operations": ("Orders, and how far they are.", ("listings", "orders")),
        "reviews": ("Plans that wait for a person.", ("listings",)),
        "breakers": ("What automation leaves alone after failed repairs.", ("listings",)),
        "leases": ("Who may act on what now.", ("listings",)),
        "backups": ("Copies, and which were verified.", ("listings",)),
        "vmids": ("VMIDs that are not free, and why.", ("listings", "vmids")),
        "hosts": ("Proxmox nodes that take servers.", ("listings", "people")),
        "tokens": ("Credentials of the API.", ("listings",)),
        "known-hosts": ("Print the containers' SSH host keys as a known_hosts file.", ("known_hosts",)),
        "audit": ("Who did what: append-only.", ("listings",)),
    },
    "Order": {
        "create": ("Order a server for a customer.", ("orders",)),
        "delete": ("Delete a server for good.", ("orders",)),
        "start": ("Start a server.", ("orders",)),
        "stop": ("Stop a server until a person starts it.", ("orders",)),
        "restart": ("Restart a server.", ("orders",)),
        "deploy-agent": ("Deploy the pinned release of the agent.", ("orders",)),
        "restart-agent": ("Restart the agent's service.", ("orders",)),
        "backup": ("How to copy a server by hand.", ("byhand",)),
        "restore": ("How to restore a server by hand.", ("byhand",)),
        "customers": ("Who owns servers.", ("listings", "people")),
        "token": ("Create and revoke credentials of the API.", ("people",)),
    },
    "Brakes": {
        "pause": ("Stop all automation, of everything, a host or a server.", ("brakes",)),
        "resume": ("Let automation act again.", ("brakes",)),
        "intake": ("Whether new orders are taken.", ("intake",)),
        "maintenance": ("Keep automation and orders off a server while you work on it.", ("brakes",)),
        "lease": ("Hold a server's lease for work outside the engine, or free one that was left.", ("hold",)),
        "agents": ("The agents in the containers.", ("agents",)),
        "approve": ("Say yes to a plan that waits for a person.", ("reviews",)),
        "reject": ("Say no to one.", ("reviews",)),
        "repair-level": ("Up to which level automation repairs.", ("brakes",)),
    },
    "Mend": {
        "redis": ("Redis, which may be thrown away at any time.", ("resets",)),
        "engine": ("Prefect's database, which may be thrown away at any time.", ("resets",)),
    },
    "Set up": {
        "config": ("Effective settings.", ("look",)),
        "migrate": ("Bring the database to this version's tables.", ("look",)),
        "ca": ("The certificate authority of the agents.", ("people",)),
        "api": ("Serve the customers' and the control listener.", ("services",)),
        "dispatch": ("Deliver alerts, and hand new operations to the engine.", ("services",)),
        "watchdog": ("Alert when no sweep finishes, or alerts stand still.", ("services",)),
        "worker": ("The engine's worker.", ("services",)),
    },
}
COMMANDS = {name: entry for commands in SECTIONS.values() for name, entry in commands.items()}


def load(name: str) -> Any:
    """The real command."""
    tree = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    for module in COMMANDS[name][1]:
        import_module(f"flows.cli.{module}").add_to(tree)
    return typer.main.get_group(tree).commands[name]


class Commands(TyperGroup):
    """Lists from the table, imports on use. ``get_command`` alone gives a stand-in: help and completion need no more of a command."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name][0], rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            return args[0], load(args[0]), args[1:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (text, _) in commands.items()])


def group_of(app: typer.Typer, name: str) -> typer.Typer:
    """The group that another module added before."""
    found = next(g.typer_instance for g in app.registered_groups if g.name == name)
    assert found is not None
    return found
