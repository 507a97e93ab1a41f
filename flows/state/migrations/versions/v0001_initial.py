"""Every table, the triggers that keep the audit log append-only, and the rows that must exist from the beginning."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flows.state.database import NOW
from flows.state.migrations import initial_tables

revision = "0001"
down_revision = None

_SQLITE = [
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END",
]
#: 4025 is MariaDB's own number for a violated constraint.
_MYSQL = [
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit FOR EACH ROW "
    "SIGNAL SQLSTATE '23000' SET MYSQL_ERRNO = 4025, MESSAGE_TEXT = 'audit is append-only'",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit FOR EACH ROW "
    "SIGNAL SQLSTATE '23000' SET MYSQL_ERRNO = 4025, MESSAGE_TEXT = 'audit is append-only'",
]
_POSTGRESQL = [
    "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "BEGIN RAISE EXCEPTION 'audit is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$",
    "CREATE TRIGGER audit_no_update BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_append_only()",
    "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
]


def upgrade() -> None:
    bind = op.get_bind()
    initial_tables.create()
    for statement in {"sqlite": _SQLITE, "mysql": _MYSQL, "postgresql": _POSTGRESQL}[bind.dialect.name]:
        op.execute(sa.text(statement))
    now = int(bind.exec_driver_sql(NOW[bind.dialect.name]).one()[0])
    plans = sa.table("plan_limits", *(sa.column(c) for c in ("plan", "servers", "memory_mb", "disk_gb", "backups")))
    op.bulk_insert(
        plans,
        [
            {"plan": "basic", "servers": 3, "memory_mb": 12_288, "disk_gb": 90, "backups": 7},
            {"plan": "pro", "servers": 10, "memory_mb": 49_152, "disk_gb": 400, "backups": 14},
        ],
    )
    epochs = sa.table("epochs", *(sa.column(c) for c in ("name", "epoch", "holder", "expires_at")))
    op.bulk_insert(epochs, [{"name": "reconcile", "epoch": 0, "holder": None, "expires_at": 0}])
    control = sa.table("control", *(sa.column(c) for c in ("name", "value", "changed_at", "changed_by")))
    op.bulk_insert(
        control,
        [
            {"name": "generation", "value": now, "changed_at": now, "changed_by": "system:install"},
            {"name": "repair_level", "value": 1, "changed_at": now, "changed_by": "system:install"},
        ],
    )


def downgrade() -> None:
    bind = op.get_bind()
    initial_tables.drop()
    if bind.dialect.name == "postgresql":
        op.execute(sa.text("DROP FUNCTION audit_append_only()"))
