"""Settings: environment variables ``ZLH_<GROUP>__<FIELD>`` or an env file (``ZLH_ENV_FILE``), one group per subsystem.

Secrets are :class:`~pydantic.SecretStr`; ``ZLH_<GROUP>__<FIELD>_FILE`` names a file to read any secret from.
What the environment says in either way comes before what the env file says.
An unknown ``ZLH_*`` variable is refused by name: a typing error must not silently mean the default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator

from flows import wellformed
from flows.domain.event import Severity
from flows.environment import META, PREFIX, read_env_file, value_of
from flows.errors import MisconfiguredSetting


class Group(BaseModel):
    """One subsystem's settings. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DatabaseSettings(Group):
    url: SecretStr = Field(
        SecretStr("sqlite+aiosqlite:///var/zlh.db"), description="SQLAlchemy URL: sqlite+aiosqlite, mysql+asyncmy or postgresql+asyncpg"
    )
    pool_size: int = Field(5, ge=1, le=50, description="Connections kept open per process (servers only)")
    busy_timeout_s: float = Field(10.0, gt=0, description="Seconds to wait for a lock of the database before giving up")


class ApiSettings(Group):
    public_bind: str = Field("127.0.0.1:8700", description="address:port of the customers' listener (behind Traefik)")
    control_bind: str = Field("127.0.0.1:8701", description="address:port of the control listener: literal control-plane address")
    control_token: SecretStr = Field(SecretStr(""), description="Bearer token of the control listener (proxy bridge, metrics)")
    admin_token: SecretStr = Field(SecretStr(""), description="Admin token with which the command line calls the API")
    requests_per_minute: int = Field(600, ge=1, description="Requests per minute and token or address before 429")
    max_body_bytes: int = Field(65_536, ge=1024, description="Largest request body, bytes")
    public_url: str = Field("", description="URL that the public listener has for its users; empty: relative links")
    trusted_proxies: tuple[str, ...] = Field((), description="Addresses whose X-Forwarded-For is believed")

    @field_validator("control_bind")
    @classmethod
    def _one_address(cls, value: str) -> str:
        return wellformed.bind(value)


class ProxmoxSettings(Group):
    host: str = Field("127.0.0.1:8006", description="address:port of one node's API; literal address")
    user: str = Field("zlh@pve", description="User of the API token")
    token_name: str = Field("autopilot", description="Name of the API token")
    token: SecretStr = Field(SecretStr(""), description="Secret of the API token")
    ca_file: Path | None = Field(None, description="CA that signed the node's certificate; unset: the system's")
    fingerprint: str = Field("", description="Instead of a CA: SHA-256 of the node's own certificate (`pvenode cert info`), hex, colons allowed")
    timeout_s: float = Field(
        30.0, gt=0, description="Seconds per call, never more than ZLH_TIMING__CALL_S, which it follows; a refused token alone is delayed 3 s"
    )
    poll_s: float = Field(1.0, gt=0, description="Seconds between two looks at a running task")

    @field_validator("fingerprint")
    @classmethod
    def _sha256(cls, value: str) -> str:
        digits = value.replace(":", "").lower()
        if digits and re.fullmatch("[0-9a-f]{64}", digits) is None:
            raise ValueError("is no SHA-256 fingerprint: 64 hexadecimal digits, colons allowed (`pvenode cert info` on the node)")
        return digits

    @model_validator(mode="after")
    def _one_proof(self) -> ProxmoxSettings:
        if self.fingerprint and self.ca_file is not None:
            raise ValueError("ca_file and fingerprint are both set: one of them proves the node")
        return self


class AgentSettings(Group):
    port: int = Field(18888, ge=1, le=65535, description="Port of every agent")
    tls: bool = Field(True, description="HTTPS with the project's own CA; plain HTTP is possible on loopback alone")
    ca_dir: Path = Field(Path("var/ca"), description="Directory of the project's CA: ca.pem, ca.key (0600)")
    master_secret: SecretStr = Field(SecretStr(""), description="Secret from which each server's token is derived, at least 32 characters")
    timeout_s: float = Field(3.0, gt=0, description="Seconds per probe")
    concurrency: int = Field(256, ge=1, le=4096, description="Probes under way at once")
    max_answer_bytes: int = Field(65_536, ge=1024, description="Largest answer that is read, bytes")


class ProxySettings(Group):
    url: str = Field("http://127.0.0.1:8760", description="Control address of the Velocity bridge; literal address")
    token: SecretStr = Field(SecretStr(""), description="Bearer token of the bridge")
    ca_file: Path | None = Field(None, description="CA of the bridge's certificate; unset: the system's")
    player_address: str = Field("127.0.0.1", description="Public address that players' DNS records point to")
    player_port: int = Field(25565, ge=1, le=65535, description="Public port; other than 25565 adds an SRV record")
    timeout_s: float = Field(5.0, gt=0, description="Seconds per call")


class DnsSettings(Group):
    provider: Literal["rfc2136", "cloudflare"] = Field("rfc2136", description="Who holds the zone: a name server with RFC 2136, or Cloudflare")
    cloudflare_token: SecretStr = Field(SecretStr(""), description="Cloudflare: API token with Zone.DNS Edit for the one zone")
    cloudflare_zone_id: str = Field("", description="Cloudflare: the zone's id, 32 hexadecimal digits; it may be a parent of ZLH_DNS__ZONE")
    cloudflare_url: str = Field("https://api.cloudflare.com/client/v4", description="Cloudflare: base of its API; a lab sets its own")
    server: str = Field("127.0.0.1:53", description="address:port of the authoritative server; literal address")
    zone: str = Field("play.example", description="Zone of the players' names; records are <name>.<zone>")
    tsig_name: str = Field("zlh", description="Name of the TSIG key")
    tsig_secret: SecretStr = Field(SecretStr(""), description="Secret of the TSIG key, base64")
    tsig_algorithm: str = Field("hmac-sha256", description="Algorithm of the TSIG key")
    ttl_s: int = Field(60, ge=1, description="TTL of our records, seconds")
    timeout_s: float = Field(5.0, gt=0, description="Seconds per call")


class NotifySettings(Group):
    base_url: str = Field("https://discord.com/api/webhooks", description="Discord's webhook base; a lab sets its own")
    critical: SecretStr = Field(SecretStr(""), description="Webhook of alerts-critical, as <id>/<token>")
    repairs: SecretStr = Field(SecretStr(""), description="Webhook of alerts-repairs, as <id>/<token>")
    billing: SecretStr = Field(SecretStr(""), description="Webhook of alerts-billing, as <id>/<token>")
    provisioning: SecretStr = Field(SecretStr(""), description="Webhook of alerts-provisioning, as <id>/<token>")
    health: SecretStr = Field(SecretStr(""), description="Webhook of system-health, as <id>/<token>")
    audit: SecretStr = Field(SecretStr(""), description="Webhook of audit-log, as <id>/<token>")
    ping_users: tuple[str, ...] = Field((), description="Discord user ids that a ping names")
    mail_url: SecretStr = Field(SecretStr(""), description="Apprise URL for e-mail, empty: none")
    mail_severities: tuple[str, ...] = Field(("critical",), description="Severities that also go by mail: info, warning, critical")
    timeout_s: float = Field(10.0, gt=0, description="Seconds per delivery")
    drain_s: float = Field(2.0, gt=0, description="Seconds between two looks at the outbox")
    claim_s: float = Field(30.0, gt=0, description="Seconds that a dispatcher owns a message")
    give_up_s: float = Field(86_400.0, gt=0, description="Seconds of retries before a message is dead")
    fold_over: int = Field(5, ge=1, description="More messages of one kind for one channel than this within ZLH_NOTIFY__BURST_S become one")
    burst_s: float = Field(10.0, gt=0, description="Seconds within which messages of one kind count as one burst")
    fold_named: int = Field(10, ge=1, le=20, description="Subjects that the one message of a burst names")
    timezone: str = Field("UTC", description="IANA zone of business and quiet hours")
    business_days: tuple[int, ...] = Field((0, 1, 2, 3, 4), description="Days at the other job, Monday is 0")
    business_from: str = Field("09:00", description="Begin of business hours, HH:MM local time")
    business_to: str = Field("17:00", description="End of business hours, HH:MM local time")
    quiet_from: str = Field("23:00", description="Begin of quiet hours, HH:MM local time")
    quiet_to: str = Field("07:00", description="End of quiet hours, HH:MM local time")

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        return wellformed.zone(value)

    @field_validator("business_from", "business_to", "quiet_from", "quiet_to")
    @classmethod
    def _time_of_day(cls, value: str) -> str:
        return wellformed.time_of_day(value)

    @field_validator("business_days")
    @classmethod
    def _weekdays(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not set(value) <= set(range(7)):
            raise wellformed.wrong("names a day that is none", "name days from 0 (Monday) to 6 (Sunday), separated by commas")
        return value

    @field_validator("mail_severities")
    @classmethod
    def _known_severities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = set(value) - set(Severity)
        if unknown:
            raise wellformed.wrong(f"{', '.join(sorted(unknown))}: no such severity", f"choose among {', '.join(Severity)}")
        return value


class AnsibleSettings(Group):
    runner: Literal["ansible", "lab"] = Field("ansible", description="ansible: ansible-runner; lab: the simulated fleet's own")
    lab_url: str = Field("", description="Control URL of the simulated fleet (runner=lab only)")
    lab_token: SecretStr = Field(SecretStr(""), description="Bearer token of that control URL (runner=lab only)")
    project_dir: Path = Field(Path("."), description="Directory with playbooks/, roles/ and ansible.cfg")
    private_key: Path | None = Field(None, description="SSH key of the controller, for containers and nodes")
    node_user: str = Field("zlh-node", description="User on the nodes whose sudoers admits /usr/sbin/pct alone")
    node_port: int = Field(22, ge=1, le=65535, description="SSH port of the nodes")
    node_known_hosts: Path | None = Field(None, description="known_hosts file with the nodes' SSH host keys; without it no container can be trusted")
    node_addresses: tuple[str, ...] = Field((), description="Nodes' SSH addresses as NAME=ADDRESS; empty: all by the host of ZLH_PROXMOX__HOST")
    timeout_s: float = Field(600.0, gt=0, description="Seconds per playbook")
    scratch_dir: Path = Field(Path("/dev/shm"), description="tmpfs for a run's private data")  # noqa: S108 - tmpfs is the point: secrets must not reach a disk
    forwarding_secret: SecretStr = Field(SecretStr(""), description="Velocity's forwarding secret, given to game servers")

    @field_validator("node_addresses")
    @classmethod
    def _names_and_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(wellformed.node(entry) for entry in value)


class EngineSettings(Group):
    url: str = Field("http://127.0.0.1:4200/api", description="Prefect's API; loopback or a literal address")
    auth: SecretStr = Field(SecretStr(""), description="Prefect's auth string, user:password")
    pool: str = Field("zlh", description="Work pool")
    home: Path = Field(Path("var/prefect"), description="Directory of Prefect's profile, its SQLite database and the flow runs' working directory")
    timeout_s: float = Field(10.0, gt=0, description="Seconds per call")

    @field_validator("url")
    @classmethod
    def _near(cls, value: str) -> str:
        return wellformed.url(value, "http://127.0.0.1:4200/api", hosts=("localhost",))


class ArtifactSettings(Group):
    url: str = Field("http://127.0.0.1:8770", description="Artifact server; literal address")
    cache_file: Path = Field(Path("var/catalog.json"), description="Last good copy of the catalog")
    timeout_s: float = Field(5.0, gt=0, description="Seconds per call")

    @field_validator("url")
    @classmethod
    def _literal(cls, value: str) -> str:
        return wellformed.url(value, "http://10.0.0.22:8770")


class RedisSettings(Group):
    url: SecretStr = Field(SecretStr(""), description="Redis URL of the optional gate; empty: none")
    prefix: str = Field("zlh:", description="Prefix of every key of ours")
    timeout_s: float = Field(2.0, gt=0, description="Seconds per call")


class TopologySettings(Group):
    """What ``zlh validate workers`` expects."""

    hosts: tuple[str, ...] = Field(
        (),
        description="Machines that may run our processes, as NAME=ADDRESS, one entry for each address; empty: this one",
    )
    workers: int = Field(1, ge=1, description="Workers of the engine that may be online at once")

    @field_validator("hosts")
    @classmethod
    def _names_and_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(wellformed.machine(entry) for entry in value)


class NetworkSettings(Group):
    pool: str = Field("10.20.0.0/16", description="Network from which containers get static addresses")
    gateway: str = Field("10.20.0.1", description="Gateway written into containers")
    first: str = Field("", description="First address handed out; empty: the 11th of the pool")
    control_addresses: tuple[str, ...] = Field((), description="Addresses and networks of the controller: agents and SSH admit it from there alone")

    @field_validator("pool")
    @classmethod
    def _network(cls, value: str) -> str:
        return wellformed.network(value)

    @field_validator("gateway", "first")
    @classmethod
    def _of_the_pool(cls, value: str, info: ValidationInfo) -> str:
        if "pool" in info.data and (value or info.field_name == "gateway"):
            wellformed.member(value, info.data["pool"])
        return value

    @field_validator("control_addresses")
    @classmethod
    def _addresses_and_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(wellformed.origin(entry) for entry in value)


class VmidSettings(Group):
    first: int = Field(10_000, ge=100, description="First VMID of our own range")
    last: int = Field(19_999, ge=100, description="Last VMID of our own range")
    quarantine_s: int = Field(86_400, ge=86_400, description="Seconds before a released VMID is handed out again")

    @field_validator("last")
    @classmethod
    def _after_the_first(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("first", value):
            raise wellformed.wrong(f"{value} comes before the first, {info.data['first']}", "raise it, or lower ZLH_VMID__FIRST")
        return value


class PlacementSettings(Group):
    memory_headroom_mb: int = Field(2_048, ge=0, description="Memory of a node that is never promised, MB")
    memory_headroom_fraction: float = Field(0.05, ge=0, lt=1, description="Share of a node's memory that is never promised, if larger")
    disk_headroom_fraction: float = Field(0.10, ge=0, lt=1, description="Share of a node's disk that is never promised")


class TimingSettings(Group):
    """Start-up refuses ``heartbeat + call time-out + margin >= lease``."""

    sweep_s: float = Field(
        60.0, ge=1, le=75, description="Seconds between two sweeps; what a sweep saw is believed for 150 s, which must outlast two of them"
    )
    late_s: float = Field(
        60.0, ge=0, description="Seconds after which a sweep that did not begin in time ends as superseded, if two intervals are less"
    )
    observe_s: float = Field(20.0, gt=0, description="Seconds for observing")
    sweep_limit_s: float = Field(45.0, gt=0, description="Seconds for a whole sweep, hard")
    lease_s: float = Field(60.0, gt=0, description="Seconds before a lease without heartbeat expires")
    heartbeat_s: float = Field(10.0, gt=0, description="Seconds between two heartbeats")
    epoch_s: float = Field(30.0, gt=0, description="Seconds before a sweep's epoch expires")
    epoch_renew_s: float = Field(5.0, gt=0, description="Seconds between two renewals of the epoch")
    call_s: float = Field(30.0, gt=0, description="Longest call to an unfenced peer, seconds")
    margin_s: float = Field(10.0, ge=0, description="Seconds that a lease must hold beyond such a call")
    operation_s: float = Field(3600.0, gt=0, description="Seconds that an operation may take in all")
    stuck_s: float = Field(900.0, gt=0, description="Seconds without progress that count as stuck")
    unsubmitted_s: float = Field(30.0, gt=0, description="Seconds after which an unclaimed attempt is submitted by the sweep")
    step_factor: float = Field(1.0, gt=0, description="Scales every step's deadline")
    submit_s: float = Field(1.0, gt=0, description="Seconds between two looks for unsubmitted attempts")
    ready_poll_s: float = Field(1.0, gt=0, description="Seconds between two looks at a starting workload")


class PolicySettings(Group):
    confirm_sweeps: int = Field(2, ge=1, description="Sweeps that confirm an unreachable agent or a stale entry")
    breaker_attempts: int = Field(3, ge=1, description="Repair attempts per server and window")
    breaker_window_s: float = Field(3600.0, gt=0, description="Length of the breaker's window, seconds")
    concurrent_repairs: int = Field(4, ge=1, description="Repairs of one sweep")
    concurrent_per_host: int = Field(2, ge=1, description="Repairs of one sweep per host")
    max_attempts: int = Field(3, ge=1, description="Claimed attempts per operation before it is compensated")
    source_critical_sweeps: int = Field(3, ge=2, description="Sweeps without a source's answer before a person is woken")
    review_s: float = Field(86_400.0, ge=60, description="Seconds for which a plan that was asked, and its approval, is good")
    recall_s: float = Field(86_400.0, gt=0, description="Seconds between two reminders of a finding that waits for a person, or of a pause")
    cleanup_attempts: int = Field(3, ge=1, description="Failed clean-ups of an operation before a person is called")
    cleanup_backoff_s: float = Field(60.0, gt=0, description="Seconds before a failed clean-up is tried again; doubled each time")
    bulk_per_hour: int = Field(3, ge=0, description="Bulk repairs of one source in an hour")
    withdrawals_per_hour: int = Field(12, ge=0, description="Withdrawals of one name from the edge in an hour")
    host_down_fraction: float = Field(
        0.5, gt=0, lt=1, description="Share of a node's containers that turn unreachable together: more is one incident"
    )
    host_down_min: int = Field(3, ge=1, description="Containers of a node below which that share says nothing")
    drift_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the servers that drift alike in one source: more is one incident, not many repairs"
    )
    drift_min: int = Field(5, ge=1, description="Servers below which that share says nothing")
    keep_days: int = Field(14, ge=1, description="Days that finished sweeps and delivered messages are kept")
    watch_backups: bool = Field(False, description="Report servers without a fresh backup; this version makes none, so only where you record them")


class WatchdogSettings(Group):
    intervals: int = Field(3, ge=2, description="Sweep intervals without a finished sweep before a person is woken")
    repeat_s: float = Field(86_400.0, gt=0, description="Seconds before the watchdog repeats what still lasts")
    state_file: Path = Field(Path("var/watchdog.json"), description="What the watchdog announced already")


class DeadmanSettings(Group):
    url: str = Field("", description="Heartbeat URL called after every clean sweep; empty: none")


class Settings(Group):
    """Everything. Built once by :func:`load` and handed down; nothing reads the environment later."""

    database: DatabaseSettings = DatabaseSettings()
    api: ApiSettings = ApiSettings()
    proxmox: ProxmoxSettings = ProxmoxSettings()
    agent: AgentSettings = AgentSettings()
    proxy: ProxySettings = ProxySettings()
    dns: DnsSettings = DnsSettings()
    notify: NotifySettings = NotifySettings()
    ansible: AnsibleSettings = AnsibleSettings()
    engine: EngineSettings = EngineSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    redis: RedisSettings = RedisSettings()
    topology: TopologySettings = TopologySettings()
    network: NetworkSettings = NetworkSettings()
    vmid: VmidSettings = VmidSettings()
    placement: PlacementSettings = PlacementSettings()
    timing: TimingSettings = TimingSettings()
    policy: PolicySettings = PolicySettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    deadman: DeadmanSettings = DeadmanSettings()

    @model_validator(mode="after")
    def _lease_outlives_a_call(self) -> Settings:
        t = self.timing
        if t.heartbeat_s + t.call_s + t.margin_s >= t.lease_s:
            raise wellformed.wrong(
                "heartbeat_s + call_s + margin_s are not below it: a call that begins under a lease must end under it",
                "raise ZLH_TIMING__LEASE_S, or lower the others",
                "timing.lease_s",
            )
        if self.proxmox.timeout_s > t.call_s:
            if "timeout_s" in self.proxmox.model_fields_set:
                raise wellformed.wrong(
                    f"is longer than the longest call that a lease allows for ({t.call_s:g} s)",
                    "lower it, or raise ZLH_TIMING__CALL_S",
                    "proxmox.timeout_s",
                )
            # Frozen for everybody else: a default that nobody chose follows what it must not exceed.
            object.__setattr__(self, "proxmox", self.proxmox.model_copy(update={"timeout_s": t.call_s}))
        return self

    @model_validator(mode="after")
    def _the_controllers_key_is_bound(self) -> Settings:
        if self.ansible.runner == "ansible" and self.ansible.private_key is not None and not self.network.control_addresses:
            raise wellformed.wrong(
                "is empty: the controller's SSH key would be admitted from everywhere",
                "name the controller's addresses, like 10.20.0.2",
                "network.control_addresses",
            )
        return self


def fields() -> Iterator[tuple[str, str, Any]]:
    """``(variable, group.field, FieldInfo)`` of every setting."""
    for group, info in Settings.model_fields.items():
        assert isinstance(info.annotation, type)
        for name, field in info.annotation.model_fields.items():
            yield f"{PREFIX}{group}__{name}".upper(), f"{group}.{name}", field


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment over the env file over the defaults.

    Raises MisconfiguredSetting naming the variable, the value's problem and the remedy.
    """
    here = os.environ if environ is None else environ
    given = _said(read_env_file(Path(here["ZLH_ENV_FILE"])), "the env file") if here.get("ZLH_ENV_FILE") else {}
    given |= _said(here, "the environment")
    tree: dict[str, dict[str, object]] = {}
    for variable, path, field in fields():
        if variable not in given:
            continue
        key, raw = given[variable]
        value: object = raw if key == variable else value_of(key, raw)
        if str(field.annotation).startswith("tuple["):
            value = tuple(part.strip() for part in str(value).split(",") if part.strip())
        group, _, name = path.partition(".")
        tree.setdefault(group, {})[name] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        told = first.get("ctx", {})
        place = told.get("setting") or ".".join(str(part) for part in first["loc"][:2])
        why = str(first["msg"]).removeprefix("Value error, ")
        remedy = told.get("remedy", "see docs/settings.md")
        raise MisconfiguredSetting(f"{PREFIX}{place.replace('.', '__').upper()}", why=why, remedy=remedy) from None


def _said(layer: Mapping[str, str], where: str) -> dict[str, tuple[str, str]]:
    """One layer's variables, each with the key that says it (its own, or that with ``_FILE``) and what it says.

    Raises MisconfiguredSetting for one that is unknown, or said twice.
    """
    secret = {variable: field.annotation is SecretStr for variable, _, field in fields()}
    said: dict[str, tuple[str, str]] = {}
    for key in sorted(key for key in layer if key.startswith(PREFIX) and key not in META):
        variable = key.removesuffix("_FILE") if key not in secret and secret.get(key.removesuffix("_FILE")) else key
        if variable not in secret:
            close = difflib.get_close_matches(variable, secret, 1, 0.6)
            hint = f"did you mean {close[0]}?" if close else "see docs/settings.md for every setting"
            raise MisconfiguredSetting(key, why="is no setting of this program", remedy=hint)
        if variable in said:
            raise MisconfiguredSetting(variable, why=f"{where} sets both it and {key}", remedy="remove one of them")
        said[variable] = key, layer[key]
    return said
