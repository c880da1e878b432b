"""When an API key was last used.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("last_used_at", sa.Double, nullable=True))


def losses(connection: sa.Connection) -> list[str]:
    query = sa.text("SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL")
    used = connection.execute(query).scalar_one()
    return [f"when {used} API keys were last used"] if used else []


def downgrade() -> None:
    op.drop_column("api_keys", "last_used_at")
