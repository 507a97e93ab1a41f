"""When a sweep's holder last said that it is there: without it, a clock that was set back cannot be told from a long time to live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("epochs", sa.Column("renewed_at", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("epochs", "renewed_at")
