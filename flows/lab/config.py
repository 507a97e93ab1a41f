"""The lab's configuration, one JSON file: ``python -m flows.lab --config FILE.json``. Unknown fields are refused.

Every ``bind`` is ``address:port`` on loopback; port 0 lets the system choose, and the state file says what it chose. With fleet ``lxc`` the
artifact server listens on the address of the containers' bridge instead: they must reach it.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from flows.errors import BadInput


def split_bind(value: str) -> tuple[str, int]:
    """``"127.0.0.1:8006"`` → ``("127.0.0.1", 8006)``. Raises ValueError unless it is a literal address with a port."""
    host, separator, port = value.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be address:port")
    ipaddress.ip_address(host.strip("[]"))
    return host, int(port)


def _is_loopback(bind: str) -> bool:
    return ipaddress.ip_address(split_bind(bind)[0].strip("[]")).is_loopback


def _bind(value: str) -> str:
    if not _is_loopback(value):
        raise ValueError("must be a loopback address: the lab has no protection against strangers")
    return value


def _literal(value: str) -> str:
    split_bind(value)
    return value


Bind = Annotated[str, AfterValidator(_bind)]
Seconds = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ControlConfig(Section):
    bind: Bind = "127.0.0.1:0"
    token: SecretStr = Field(description="bearer token of the control API and of the playbook runner")


class NodeConfig(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    memory_mb: int = Field(65_536, ge=1)
    cores: int = Field(16, ge=1)
    disk_gb: int = Field(1_000, ge=1)
    address: str = "127.0.0.1"


class TemplateConfig(Section):
    """``flavor`` is what the product's placement knows it by. VMIDs are unique in the whole cluster, so each node has its own."""

    vmid: int = Field(ge=100)
    node: str
    flavor: str
    memory_mb: int = 512
    cores: int = 1
    disk_gb: int = 4
    tags: tuple[str, ...] = ("template",)


class StorageConfig(Section):
    """``nodes`` empty: on every node."""

    name: str = "local-lvm"
    kind: str = "lvmthin"
    content: tuple[str, ...] = ("rootdir", "images")
    nodes: tuple[str, ...] = ()
    shared: bool = False


class TokenConfig(Section):
    """An API token ``user!name``. ``rights`` maps an ACL path to its privileges, which hold below it as well."""

    user: str = "zlh@pve"
    name: str = "autopilot"
    secret: SecretStr
    rights: dict[str, tuple[str, ...]] = Field(default_factory=lambda: {path: tuple(privs) for path, privs in DEFAULT_RIGHTS.items()})
    expire: int = Field(0, ge=0, description="Unix seconds after which the token is refused; 0: never")


class UserConfig(Section):
    """A user who logs in with a password, as a person or a ticket client does."""

    user: str = "root@pam"
    password: SecretStr
    rights: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="as a token's; root@pam may do everything")


class ProxmoxTimings(Section):
    """Seconds that things take."""

    clone_s: Seconds = 1.0
    start_s: Seconds = 0.3
    stop_s: Seconds = 0.2
    shutdown_s: Seconds = 0.5
    destroy_s: Seconds = 0.3
    snapshot_s: Seconds = 0.3
    backup_s: Seconds = 1.0
    refuse_s: Seconds = Field(3.0, description="delay of a 401")
    lock_wait_s: Seconds = Field(10.0, description="how long a call or task waits for a container's lock file")
    storage_lock_wait_s: Seconds = Field(0.4, description="how long a clone waits for its storage's lock: shorter than a clone, as in reality")
    proxy_timeout_s: Seconds = Field(1.0, description="how long a call for a dead node takes to become a 595")


class ProxmoxConfig(Section):
    bind: Bind = "127.0.0.1:0"
    ca_dir: Path = Field(description="directory of the face's CA: ca.pem, ca.key, server.pem, server.key; made when missing")
    cluster: str | None = Field("lab", description="name of the cluster; null: a standalone node, without a cluster entry")
    nodes: tuple[NodeConfig, ...] = Field((NodeConfig(name="pve1"), NodeConfig(name="pve2")), min_length=1)
    storages: tuple[StorageConfig, ...] = (StorageConfig(), StorageConfig(name="local", kind="dir", content=("vztmpl", "backup", "iso")))
    bridges: tuple[str, ...] = ("vmbr0",)
    templates: tuple[TemplateConfig, ...] = Field(default_factory=lambda: DEFAULT_TEMPLATES)
    pools: tuple[str, ...] = ()
    tokens: tuple[TokenConfig, ...] = ()
    users: tuple[UserConfig, ...] = ()
    version: str = "9.0.11"
    timings: ProxmoxTimings = ProxmoxTimings()

    @model_validator(mode="after")
    def _consistent(self) -> ProxmoxConfig:
        names = [n.name for n in self.nodes]
        if len(set(names)) != len(names):
            raise ValueError("nodes: a name appears twice")
        if self.cluster is None and len(names) > 1:
            raise ValueError("cluster: several nodes need a cluster")
        vmids = [t.vmid for t in self.templates]
        if len(set(vmids)) != len(vmids):
            raise ValueError("templates: a VMID appears twice")
        for template in self.templates:
            if template.node not in names:
                raise ValueError(f"templates: {template.vmid} is on node {template.node!r}, which does not exist")
        return self


class AgentsConfig(Section):
    """One listener per container that has an agent, on the container's own address."""

    pool: str = Field("127.20.0.0/16", description="network of the containers' addresses, inside 127.0.0.0/8")
    port: int = Field(18_888, ge=0, le=65_535, description="port of every agent; 0: one free on 127.0.0.1 is chosen at start")
    start_s: Seconds = Field(1.0, description="seconds from start to ready")
    stop_s: Seconds = 0.3
    crash_restart_s: Seconds = Field(2.0, description="seconds before a crashed workload is started again")

    @field_validator("pool")
    @classmethod
    def _loopback(cls, value: str) -> str:
        network = ipaddress.ip_network(value)
        if not isinstance(network, ipaddress.IPv4Network) or not network.subnet_of(ipaddress.IPv4Network("127.0.0.0/8")):
            raise ValueError("must lie inside 127.0.0.0/8")
        return value


class BridgeConfig(Section):
    bind: Bind = "127.0.0.1:0"
    token: SecretStr = Field(description="bearer token that the bridge expects")
    backends_url: str = Field("", description="GET /internal/proxy/backends of the product's control listener; empty: never rehydrates")
    backends_token: SecretStr = SecretStr("")
    rehydrate_retry_s: Seconds = 2.0
    players_bind: Bind = "127.0.0.1:0"


class DnsConfig(Section):
    bind: Bind = "127.0.0.1:0"
    zone: str = "play.example"
    tsig_name: str = "zlh"
    tsig_secret: SecretStr = Field(description="base64")
    tsig_algorithm: str = "hmac-sha256"


class DiscordConfig(Section):
    """``webhooks`` maps a channel's name to ``<id>/<token>``; anything else is 404."""

    bind: Bind = "127.0.0.1:0"
    webhooks: dict[str, SecretStr] = {}
    requests: int = Field(5, ge=1, description="posts per webhook and window before 429")
    window_s: Seconds = 2.0


class ArtifactsConfig(Section):
    bind: Annotated[str, AfterValidator(_literal)] = Field("127.0.0.1:0", description="loopback, or the bridge's address of fleet lxc")
    directory: Path | None = Field(None, description="files served beside the lab's own; unset: only those")
    builtin: bool | None = Field(None, description="whether the lab's made-up files are served; unset: with fleet sim alone")


class CloudflareConfig(Section):
    """A double of Cloudflare's DNS API, for those who keep their zone there; not among the parts that are started by default."""

    bind: Bind = "127.0.0.1:0"
    zone: str = "play.example"
    zone_id: str = Field("0123456789abcdef0123456789abcdef", pattern=r"^[0-9a-f]{32}$")
    token: SecretStr = Field(description="API token that may edit the zone")
    reader_token: SecretStr | None = Field(None, description="API token that may read alone")
    requests: int = Field(1_200, ge=1, description="calls per window before 429")
    window_s: Seconds = 300.0
    most_per_page: int = Field(5_000_000, ge=1, description="records per page at most, whatever is asked for")


class RunnerConfig(Section):
    project_dir: Path = Field(Path("."), description="directory with playbooks/ and roles/ whose argument specs are checked")
    task_s: Seconds = Field(0.1, description="seconds that each simulated task takes")


class LxcConfig(Section):
    """Real containers."""

    network: str = Field(description="IPv4 network of the containers' bridge; the bridge has its first host address")
    images: Path = Field(Path("/var/cache/zlh-lab/images"), description="where built images are kept from one lab to the next")

    @field_validator("network")
    @classmethod
    def _roomy(cls, value: str) -> str:
        network = ipaddress.ip_network(value)
        if not isinstance(network, ipaddress.IPv4Network) or network.prefixlen > 28 or not network.is_private or network.is_loopback:
            raise ValueError("must be a private IPv4 network of at least 16 addresses, like 10.213.7.0/24")
        return value

    @property
    def gateway(self) -> str:
        """The bridge's own address."""
        return str(ipaddress.IPv4Network(self.network)[1])


class NodeSshConfig(Section):
    """The node's side of ``pct``: an SSH server per node, on the node's address. Fleet lxc alone."""

    port: int = Field(0, ge=0, le=65_535, description="of every node; 0: one free is chosen at start")
    user: str = Field("zlh-node", pattern=r"^[a-z_][a-z0-9_-]{0,30}$")
    key: Path | None = Field(None, description="the controller's private key; its .pub may log in; made when missing")


class LabConfig(Section):
    """All of it. Parts that are missing from ``parts`` are not started."""

    fleet: Literal["sim", "lxc"] = Field("sim", description="sim: containers are records; lxc: real ones, as root")
    lxc: LxcConfig | None = Field(None, description="needed with fleet lxc")
    state_file: Path = Field(description="written, mode 0600, when every part is ready; removed at the end")
    parts: tuple[str, ...] = ("proxmox", "agents", "bridge", "dns", "discord", "artifacts", "runner")
    control: ControlConfig
    proxmox: ProxmoxConfig
    agents: AgentsConfig = AgentsConfig()
    bridge: BridgeConfig
    dns: DnsConfig
    discord: DiscordConfig = DiscordConfig()
    artifacts: ArtifactsConfig = ArtifactsConfig()
    runner: RunnerConfig = RunnerConfig()
    node: NodeSshConfig = NodeSshConfig()
    cloudflare: CloudflareConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LabConfig:
        if (self.fleet == "lxc") != (self.lxc is not None):
            raise ValueError("lxc: belongs to fleet lxc, which needs it")
        host = split_bind(self.artifacts.bind)[0]
        if not _is_loopback(self.artifacts.bind) and (self.lxc is None or host != self.lxc.gateway):
            raise ValueError("artifacts.bind: must be a loopback address, or with fleet lxc the bridge's")
        return self

    @property
    def directory(self) -> Path:
        """Where this lab keeps what is its own."""
        return self.state_file.parent


DEFAULT_RIGHTS: dict[str, tuple[str, ...]] = {
    "/vms": tuple(
        "VM.Audit VM.Allocate VM.Clone VM.Config.CPU VM.Config.Disk VM.Config.Memory VM.Config.Network VM.Config.Options "
        "VM.PowerMgmt VM.Snapshot VM.Snapshot.Rollback VM.Backup".split()
    ),
    "/storage": ("Datastore.Audit", "Datastore.AllocateSpace"),
    "/sdn": ("SDN.Use", "SDN.Audit"),
    "/nodes": ("Sys.Audit",),
    "/": ("Sys.Audit",),
}
DEFAULT_TEMPLATES: tuple[TemplateConfig, ...] = (
    TemplateConfig(vmid=9000, node="pve1", flavor="fabric"),
    TemplateConfig(vmid=9001, node="pve1", flavor="dev"),
    TemplateConfig(vmid=9010, node="pve2", flavor="fabric"),
    TemplateConfig(vmid=9011, node="pve2", flavor="dev"),
)


def load(path: Path) -> LabConfig:
    """Reads and validates a configuration. Raises BadInput naming the field."""
    try:
        return LabConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput("--config", str(path), why=str(error), remedy="name a readable file") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise BadInput(field, "(hidden)", why=str(first["msg"]), remedy=f"correct {path}") from None


def dump(config: LabConfig) -> str:
    """The configuration as JSON with its secrets in clear: for a 0600 file that :func:`load` reads."""

    def reveal(value: Any) -> Any:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        if isinstance(value, BaseModel):
            return {name: reveal(getattr(value, name)) for name in type(value).model_fields}
        if isinstance(value, dict):
            return {key: reveal(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [reveal(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return json.dumps(reveal(config), indent=1)
