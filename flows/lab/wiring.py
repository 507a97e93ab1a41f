"""What a lab is configured with, and the settings by which the product reaches it. Used by :mod:`launch`."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: The product's channels, in the order of its settings.
CHANNELS = {
    "critical": "alerts-critical",
    "repairs": "alerts-repairs",
    "billing": "alerts-billing",
    "provisioning": "alerts-provisioning",
    "health": "system-health",
    "audit": "audit-log",
}


def generated(directory: Path) -> dict[str, Any]:
    """Everything that needs a value of its own; the rest are the program's defaults."""
    hook = 1_400_000_000_000_000_000
    return {
        "state_file": str(directory / "state.json"),
        "control": {"bind": "127.0.0.1:0", "token": secrets.token_urlsafe(32)},
        "proxmox": {
            "bind": "127.0.0.1:0",
            "ca_dir": str(directory / "proxmox-ca"),
            "tokens": [{"user": "zlh@pve", "name": "autopilot", "secret": secrets.token_hex(16)}],
            "users": [{"user": "root@pam", "password": secrets.token_urlsafe(16)}],
        },
        "agents": {"pool": "127.20.0.0/16", "port": 0},
        "bridge": {"bind": "127.0.0.1:0", "players_bind": "127.0.0.1:0", "token": secrets.token_urlsafe(32)},
        "dns": {
            "bind": "127.0.0.1:0",
            "zone": "play.example",
            "tsig_name": "zlh",
            "tsig_secret": base64.b64encode(secrets.token_bytes(32)).decode(),
            "tsig_algorithm": "hmac-sha256",
        },
        "discord": {
            "bind": "127.0.0.1:0",
            "webhooks": {channel: f"{hook + number}/{secrets.token_urlsafe(24)}" for number, channel in enumerate(CHANNELS.values())},
        },
        "artifacts": {"bind": "127.0.0.1:0"},
        "runner": {},
    }


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, table by table."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def env(config: Mapping[str, Any], points: Mapping[str, Mapping[str, str]], control: tuple[str, str]) -> dict[str, str]:
    """The ``ZLH_*`` variables with which the product talks to a lab, from its configuration, its endpoints, and URL and token of its
    control API. They hold secrets."""
    token = config["proxmox"]["tokens"][0]
    player_host, _, player_port = points["bridge"]["players"].rpartition(":")
    hooks = {f"ZLH_NOTIFY__{key.upper()}": config["discord"]["webhooks"][channel] for key, channel in CHANNELS.items()}
    pool = points["agents"]["pool"]
    return {
        "ZLH_PROXMOX__HOST": points["proxmox"]["address"],
        "ZLH_PROXMOX__USER": token["user"],
        "ZLH_PROXMOX__TOKEN_NAME": token["name"],
        "ZLH_PROXMOX__TOKEN": token["secret"],
        "ZLH_PROXMOX__CA_FILE": points["proxmox"]["ca_file"],
        "ZLH_PROXMOX__POLL_S": "0.2",
        "ZLH_AGENT__PORT": points["agents"]["port"],
        "ZLH_AGENT__TLS": "true",
        "ZLH_PROXY__URL": points["bridge"]["url"],
        "ZLH_PROXY__TOKEN": config["bridge"]["token"],
        "ZLH_PROXY__PLAYER_ADDRESS": player_host,
        "ZLH_PROXY__PLAYER_PORT": player_port,
        "ZLH_DNS__SERVER": points["dns"]["server"],
        "ZLH_DNS__ZONE": points["dns"]["zone"],
        "ZLH_DNS__TSIG_NAME": config["dns"]["tsig_name"],
        "ZLH_DNS__TSIG_SECRET": config["dns"]["tsig_secret"],
        "ZLH_DNS__TSIG_ALGORITHM": config["dns"]["tsig_algorithm"],
        "ZLH_NOTIFY__BASE_URL": points["discord"]["webhooks"],
        **hooks,
        "ZLH_ANSIBLE__RUNNER": "lab",
        "ZLH_ANSIBLE__LAB_URL": control[0],
        "ZLH_ANSIBLE__LAB_TOKEN": control[1],
        "ZLH_ARTIFACTS__URL": points["artifacts"]["url"],
        "ZLH_NETWORK__POOL": pool,
        "ZLH_NETWORK__GATEWAY": pool.split("/")[0].rpartition(".")[0] + ".1",
        "ZLH_NETWORK__CONTROL_ADDRESSES": "127.0.0.1",
    }
