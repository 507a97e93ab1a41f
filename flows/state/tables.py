"""Every table, for SQLite, MariaDB and PostgreSQL alike. Times are BIGINT milliseconds by the database's clock.

A nullable unique column (``live_name``, ``live_server``, ``open_key``) carries a uniqueness that holds only while
a row is alive: NULLs are distinct in all three databases.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = String(36)
Name = String(64)
Subject = String(160)
Big = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[str]:
    return Column("id", Id, primary_key=True)


customers = Table(
    "customers", metadata, _id(),
    Column("name", Name, nullable=False, unique=True),
    Column("plan", Name, ForeignKey("plan_limits.plan"), nullable=False),
    Column("billing", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)  # fmt: skip

plan_limits = Table(
    "plan_limits", metadata,
    Column("plan", Name, primary_key=True),
    Column("servers", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("disk_gb", Integer, nullable=False),
    Column("backups", Integer, nullable=False),
)  # fmt: skip

tokens = Table(
    "tokens", metadata, _id(),
    Column("customer_id", Id, ForeignKey("customers.id"), nullable=True),
    Column("role", String(16), nullable=False),  # customer | admin
    Column("label", Name, nullable=False),
    Column("hash", String(64), nullable=False, unique=True),  # sha256 of 32 random bytes
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=True),
    Column("revoked_at", BigInteger, nullable=True),
)  # fmt: skip

nodes = Table(
    "nodes", metadata,
    Column("name", Name, primary_key=True),
    Column("memory_mb", Integer, nullable=False),
    Column("disk_gb", Integer, nullable=False),
    Column("cores", Integer, nullable=False),
    Column("storage", Name, nullable=False),
    Column("bridge", Name, nullable=False),
    Column("templates", JSON, nullable=False),  # flavor -> template VMID
    Column("open", Boolean, nullable=False),  # takes new servers
)  # fmt: skip

servers = Table(
    "servers", metadata, _id(),
    Column("customer_id", Id, ForeignKey("customers.id"), nullable=False),
    Column("name", Name, nullable=False),
    Column("live_name", Name, nullable=True, unique=True),
    Column("ctype", String(8), nullable=False),
    Column("flavor", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("cores", Integer, nullable=False),
    Column("disk_gb", Integer, nullable=False),
    Column("runtimes", JSON, nullable=False),
    Column("code_server", Boolean, nullable=False),
    Column("node", Name, ForeignKey("nodes.name"), nullable=False),
    Column("storage", Name, nullable=False),
    Column("bridge", Name, nullable=False),
    Column("template_vmid", Integer, nullable=False),
    Column("vmid", Integer, nullable=False),
    Column("address", String(45), nullable=False),
    Column("game_port", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("desired", String(8), nullable=False),
    Column("desired_by", Name, nullable=False),
    Column("edge", String(16), nullable=False),
    Column("token_version", Integer, nullable=False),
    Column("backup_policy", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("activated_at", BigInteger, nullable=True),
    Column("deleted_at", BigInteger, nullable=True),
    Index(None, "customer_id", "state"),
    Index(None, "state"),
)  # fmt: skip

vmids = Table(
    "vmids", metadata,
    Column("vmid", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),  # reserved | quarantined | burnt
    Column("server_id", Id, nullable=True),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=True),
    Column("reason", String(255), nullable=False, default=""),
)  # fmt: skip

addresses = Table(
    "addresses", metadata,
    Column("address", String(45), primary_key=True),
    Column("number", BigInteger, nullable=False, index=True),  # the address as a number: what is free is searched by it
    Column("state", String(16), nullable=False),
    Column("server_id", Id, nullable=True),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=True),
)  # fmt: skip

operations = Table(
    "operations", metadata, _id(),
    Column("server_id", Id, ForeignKey("servers.id"), nullable=False),
    Column("live_server", Id, nullable=True, unique=True),  # one live operation per server
    Column("customer_id", Id, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(20), nullable=False),
    Column("queue", String(16), nullable=False),
    Column("actor", Name, nullable=False),
    Column("params", JSON, nullable=False),
    Column("ctype", String(8), nullable=True),  # with customer and nonce: the deduplication key of creations
    Column("nonce", String(64), nullable=True),
    Column("body_hash", String(64), nullable=True),
    Column("attempt", Integer, nullable=False),
    Column("attempt_state", String(16), nullable=False),
    Column("attempt_at", BigInteger, nullable=False),
    Column("claimed", Integer, nullable=False, default=0),
    Column("undo_failures", Integer, nullable=False, default=0),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("step", String(32), nullable=True),
    Column("step_deadline_at", BigInteger, nullable=True),
    Column("error", JSON, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=True),
    Column("progress_at", BigInteger, nullable=False),
    Column("deadline_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger, nullable=True),
    UniqueConstraint("customer_id", "ctype", "nonce"),
    Index(None, "state"),
    Index(None, "attempt_state"),
    Index(None, "server_id", "created_at"),
    Index(None, "queue", "progress_at"),
)  # fmt: skip

attempts = Table(
    "attempts", metadata,
    Column("operation_id", Id, ForeignKey("operations.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("submitter", Name, nullable=True),
    Column("submit_until", BigInteger, nullable=True),
    Column("run_id", Name, nullable=True),
    Column("claimed_at", BigInteger, nullable=True),
    Column("ended_at", BigInteger, nullable=True),
    Column("outcome", String(32), nullable=True),
)  # fmt: skip

journal = Table(
    "journal", metadata,
    Column("operation_id", Id, ForeignKey("operations.id"), primary_key=True),
    Column("step", String(32), primary_key=True),
    Column("direction", String(4), primary_key=True),
    Column("state", String(8), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("runs", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("deadline_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger, nullable=True),
    Column("upid", String(255), nullable=True),
    Column("detail", JSON, nullable=False),
)  # fmt: skip

leases = Table(
    "leases", metadata,
    Column("subject", Subject, primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("kind", String(16), nullable=True),
    Column("holder", String(128), nullable=True),
    Column("operation_id", Id, nullable=True),
    Column("reason", String(255), nullable=False, default=""),
    Column("taken_at", BigInteger, nullable=False, default=0),
    Column("heartbeat_at", BigInteger, nullable=False, default=0),
    Column("expires_at", BigInteger, nullable=False, default=0),
    Index(None, "holder"),
)  # fmt: skip

episodes = Table(
    "episodes", metadata, _id(),
    Column("open_key", String(200), nullable=True, unique=True),
    Column("check", String(32), nullable=False, quote=True),
    Column("subject", Subject, nullable=False),
    Column("server_id", Id, nullable=True),
    Column("summary", Text, nullable=False),
    Column("remedy", Text, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("severity", Integer, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger, nullable=False),
    Column("escalated_at", BigInteger, nullable=True),
    Column("recalled_at", BigInteger, nullable=True),
    Column("closed_at", BigInteger, nullable=True),
    Index(None, "opened_at"),
    Index(None, "server_id"),
)  # fmt: skip

observations = Table(
    "observations", metadata,
    Column("server_id", Id, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("reachable", Boolean, nullable=False),
    Column("ready", Boolean, nullable=True),
    Column("state", String(16), nullable=True),
    Column("misses", Integer, nullable=False),
    Column("unready", Integer, nullable=False),
    Column("operation", String(64), nullable=True),
    Column("players", Integer, nullable=True),
    Column("provisioning_complete", Boolean, nullable=True),
    Column("last_crash", JSON, nullable=True),
    Column("reason", String(255), nullable=False, default=""),
)  # fmt: skip

#: How each source answered; and stale edge entries seen but not yet confirmed, as source ``sighting:<key>``.
sources = Table(
    "sources", metadata,
    Column("source", String(200), primary_key=True),
    Column("misses", Integer, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("reason", String(255), nullable=False, default=""),
    Column("at", BigInteger, nullable=False),
)  # fmt: skip

repairs = Table(
    "repairs", metadata, _id(),
    Column("episode_id", Id, nullable=True),
    Column("check", String(32), nullable=False, quote=True),
    Column("action", String(32), nullable=False),
    Column("subject", Subject, nullable=False),
    Column("server_id", Id, nullable=True),
    Column("host", Name, nullable=True),
    Column("level", Integer, nullable=False),
    Column("counted", Boolean, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("lease_subject", Subject, nullable=True),
    Column("lease_token", BigInteger, nullable=True),
    Column("operation_id", Id, nullable=True),
    Column("intent_at", BigInteger, nullable=False),
    Column("outcome", String(16), nullable=True),
    Column("outcome_at", BigInteger, nullable=True),
    Column("detail", Text, nullable=False, default=""),
    Index(None, "intent_at"),
    Index(None, "server_id", "intent_at"),
    Index(None, "outcome"),
)  # fmt: skip

reviews = Table(
    "reviews", metadata, _id(),
    Column("server_id", Id, nullable=True),
    Column("check", String(32), nullable=False, quote=True),
    Column("action", String(32), nullable=False),
    Column("plan_hash", String(64), nullable=False),
    Column("plan", JSON, nullable=False),
    Column("requested_by", Name, nullable=False),
    Column("requested_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("decided_by", Name, nullable=True),
    Column("decided_at", BigInteger, nullable=True),
    Column("decision", String(16), nullable=True),
)  # fmt: skip

brakes = Table(
    "brakes", metadata, _id(),
    Column("scope", String(8), nullable=False),
    Column("target", Name, nullable=False),
    Column("reason", String(255), nullable=False),
    Column("actor", Name, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=True),
    Column("recalled_at", BigInteger, nullable=True),
    Column("lifted_at", BigInteger, nullable=True),
    Column("lifted_by", Name, nullable=True),
    Index(None, "lifted_at"),
)  # fmt: skip

backups = Table(
    "backups", metadata, _id(),
    Column("server_id", Id, ForeignKey("servers.id"), nullable=False),
    Column("type", String(16), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("location", String(255), nullable=False),
    Column("verified_at", BigInteger, nullable=True),
    Index(None, "server_id", "verified_at"),
)  # fmt: skip

host_keys = Table(
    "host_keys", metadata,
    Column("server_id", Id, ForeignKey("servers.id"), primary_key=True),
    Column("key_type", String(32), primary_key=True),
    Column("public_key", Text, nullable=False),
    Column("address", String(45), nullable=False),
    Column("read_at", BigInteger, nullable=False),
)  # fmt: skip

#: Append-only: the store has no update or delete path, and triggers refuse both.
audit = Table(
    "audit", metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", Name, nullable=False),
    Column("action", String(48), nullable=False),
    Column("subject", Subject, nullable=False),
    Column("server_id", Id, nullable=True),
    Column("operation_id", Id, nullable=True),
    Column("detail", JSON, nullable=False),
    Index(None, "at"),
    Index(None, "server_id", "at"),
)  # fmt: skip

outbox = Table(
    "outbox", metadata, _id(),
    Column("key", String(200), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("channel", String(24), nullable=False),
    Column("ping", Boolean, nullable=False),
    Column("severity", String(12), nullable=False),
    Column("event", JSON, nullable=False),
    Column("state", String(12), nullable=False),  # waiting | sent | folded | dead
    Column("created_at", BigInteger, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("claimed_by", String(128), nullable=True),
    Column("claimed_until", BigInteger, nullable=True),
    Column("tries", Integer, nullable=False, default=0),
    Column("last_error", String(255), nullable=False, default=""),
    Column("sent_at", BigInteger, nullable=True),
    Column("folded_into", Id, nullable=True),
    Column("mailed_at", BigInteger, nullable=True),
    Index(None, "state", "not_before"),
    Index(None, "channel", "created_at"),
)  # fmt: skip

#: One row, ``reconcile``: the authority for who may sweep.
epochs = Table(
    "epochs", metadata,
    Column("name", Name, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(128), nullable=True),
    Column("expires_at", BigInteger, nullable=False),
    Column("renewed_at", BigInteger, nullable=False, server_default="0"),
)  # fmt: skip

sweeps = Table(
    "sweeps", metadata,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("holder", String(128), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger, nullable=True),
    Column("outcome", String(16), nullable=True),  # clean | findings | paused | failed | superseded
    Column("summary", JSON, nullable=False),
    Index(None, "finished_at"),
)  # fmt: skip

#: Single values: ``generation``, ``repair_level``, ``intake_closed``.
control = Table(
    "control", metadata,
    Column("name", Name, primary_key=True),
    Column("value", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("changed_by", Name, nullable=False),
)  # fmt: skip

# MariaDB's defaults belong to whoever installed it. Keys compare byte by byte, as in the other databases: a nonce is not its capital twin.
for _table in metadata.tables.values():
    _table.kwargs.update({"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"})
