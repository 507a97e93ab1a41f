"""What a lab is configured with, and the settings by which the product reaches it. Used by :mod:`launch`."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.errors import Permanent

#: The product's channels, in the order of its settings.
CHANNELS = {
    "critical": "alerts-critical",
    "repairs": "alerts-repairs",
    "billing": "alerts-billing",
    "provisioning": "alerts-provisioning",
    "health": "system-health",
    "audit": "audit-log",
}


#: Where labs of real containers choose their network, one /24 each.
NETWORKS = ipaddress.IPv4Network("10.213.0.0/16")
#: Memory of a container in MiB, of a node's in all, and what a clone of real files takes: nothing is waited for on top of the work itself.
LXC_MEMORY_MB, LXC_NODE_MEMORY_MB = 512, 16_384
LXC_TIMINGS = dict.fromkeys(("clone_s", "start_s", "stop_s", "shutdown_s", "destroy_s", "snapshot_s", "backup_s"), 0.0) | {
    "storage_lock_wait_s": 60.0
}


def generated(directory: Path, fleet: str = "sim") -> dict[str, Any]:
    """Everything that needs a value of its own; the rest are the program's defaults."""
    config = _generated(directory)
    if fleet == "sim":
        return config
    network = free_network(directory)
    nodes = [{"name": f"pve{n}", "address": f"127.0.0.{n}", "memory_mb": LXC_NODE_MEMORY_MB} for n in (1, 2)]
    templates = [
        {"vmid": vmid, "node": node, "flavor": flavor, "memory_mb": LXC_MEMORY_MB}
        for vmid, node, flavor in ((9000, "pve1", "fabric"), (9001, "pve1", "dev"), (9010, "pve2", "fabric"), (9011, "pve2", "dev"))
    ]
    config |= {
        "fleet": fleet,
        "lxc": {"network": str(network)},
        "parts": ["proxmox", "agents", "bridge", "dns", "discord", "artifacts", "node"],
        "artifacts": {"bind": f"{network[1]}:0", "directory": str(directory / "wares")},
        "node": {"key": str(directory / "controller_ed25519")},
    }
    config["proxmox"] |= {"nodes": nodes, "templates": templates, "timings": LXC_TIMINGS}
    config["agents"] = {"port": 18_888}
    return config


def free_network(directory: Path) -> ipaddress.IPv4Network:
    """A network of this directory's own, another where the machine has a route into it already. Raises Permanent where none is left."""
    choices = list(NETWORKS.subnets(new_prefix=24))
    first = int.from_bytes(hashlib.sha256(str(directory).encode()).digest()[:4], "big") % len(choices)
    taken = [route for route in _routes() if route.prefixlen]
    for network in choices[first:] + choices[:first]:
        if not any(network.overlaps(route) for route in taken):
            return network
    raise Permanent("choosing a network for the lab's containers", why=f"every one in {NETWORKS} is routed", remedy="name one: lxc.network")


def choose_network(config: dict[str, Any], directory: Path) -> None:
    """Another network where somebody else took ours since the last run; what was our own is not there any more. Raises Permanent."""
    network = ipaddress.IPv4Network(config["lxc"]["network"])
    if any(network.overlaps(route) for route in _routes() if route.prefixlen):
        config["lxc"]["network"] = str(free_network(directory))


def follow_network(config: dict[str, Any]) -> dict[str, Any]:
    """The artifact server listens on the bridge's address, whatever it is now."""
    if config.get("fleet") == "lxc":
        host, _, port = str(config["artifacts"]["bind"]).rpartition(":")
        try:
            gateway = str(ipaddress.IPv4Network(config["lxc"]["network"])[1])
            if not ipaddress.ip_address(host.strip("[]")).is_loopback:
                config["artifacts"]["bind"] = f"{gateway}:{port}"
        except ValueError:
            pass  # the lab refuses it, naming the field
    return config


def _routes() -> list[ipaddress.IPv4Network]:
    """The machine's IPv4 routes."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(fields[n]), "little") for n in (1, 7))
        found.append(ipaddress.IPv4Network((address, mask.bit_count())))
    return found


def _generated(directory: Path) -> dict[str, Any]:
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
        "ZLH_ARTIFACTS__URL": points["artifacts"]["url"],
        **(_cloudflare(config, points["cloudflare"]) if "cloudflare" in points else {}),
        **(_real(config, points) if config.get("fleet") == "lxc" else _simulated(points, control)),
    }


def _cloudflare(config: Mapping[str, Any], point: Mapping[str, str]) -> dict[str, str]:
    """In place of the name server, which runs all the same."""
    return {
        "ZLH_DNS__PROVIDER": "cloudflare",
        "ZLH_DNS__CLOUDFLARE_URL": point["url"],
        "ZLH_DNS__CLOUDFLARE_ZONE_ID": point["zone_id"],
        "ZLH_DNS__CLOUDFLARE_TOKEN": config["cloudflare"]["token"],
    }


def _simulated(points: Mapping[str, Mapping[str, str]], control: tuple[str, str]) -> dict[str, str]:
    pool = points["agents"]["pool"]
    return {
        "ZLH_ANSIBLE__RUNNER": "lab",
        "ZLH_ANSIBLE__LAB_URL": control[0],
        "ZLH_ANSIBLE__LAB_TOKEN": control[1],
        "ZLH_NETWORK__POOL": pool,
        "ZLH_NETWORK__GATEWAY": pool.split("/")[0].rpartition(".")[0] + ".1",
        "ZLH_NETWORK__CONTROL_ADDRESSES": "127.0.0.1",
    }


def _real(config: Mapping[str, Any], points: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Containers on a bridge of this machine, whose address is the controller's; Ansible itself, by SSH."""
    gateway = str(ipaddress.IPv4Network(config["lxc"]["network"])[1])
    node = points["node"]
    return {
        "ZLH_ANSIBLE__RUNNER": "ansible",
        "ZLH_ANSIBLE__PRIVATE_KEY": node["private_key"],
        "ZLH_ANSIBLE__NODE_USER": node["user"],
        "ZLH_ANSIBLE__NODE_PORT": node["port"],
        "ZLH_ANSIBLE__NODE_KNOWN_HOSTS": node["known_hosts"],
        "ZLH_ANSIBLE__NODE_ADDRESSES": node["addresses"],
        "ZLH_NETWORK__POOL": config["lxc"]["network"],
        "ZLH_NETWORK__GATEWAY": gateway,
        "ZLH_NETWORK__CONTROL_ADDRESSES": gateway,
    }
