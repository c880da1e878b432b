"""Published weights.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "weights",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("promoted_at", sa.Double, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("published_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_weights")),
        sa.UniqueConstraint("model", "name", name=op.f("uq_weights_model_name")),
    )


def losses(connection: sa.Connection) -> list[str]:
    weights = connection.execute(sa.text("SELECT count(*) FROM weights")).scalar_one()
    return [f"{weights} published weights"] if weights else []


def downgrade() -> None:
    op.drop_table("weights")
