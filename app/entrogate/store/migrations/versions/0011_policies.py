"""Which policy decided on a trajectory; what admins ordered for the policies in force.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "trajectories",
        sa.Column("policy_version", sa.Text(), nullable=False, server_default=""),
    )
    op.add_column(
        "trajectories",
        sa.Column("policy_changes", sa.Integer(), nullable=False, server_default="0"),
    )
    op.create_table(
        "policy_orders",
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("instead_of", sa.Text(), nullable=False),
        sa.Column("ordered_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("arm", name=op.f("pk_policy_orders")),
    )


def losses(connection: sa.Connection) -> list[str]:
    known = "SELECT count(*) FROM trajectories WHERE policy_version != ''"
    rows = connection.execute(sa.text(known)).scalar_one()
    found = [f"the policy versions of {rows} trajectories"] if rows else []
    ordered = connection.execute(sa.text("SELECT count(*) FROM policy_orders")).scalar_one()
    return [*found, f"{ordered} orders of policies"] if ordered else found


def downgrade() -> None:
    op.drop_table("policy_orders")
    op.drop_column("trajectories", "policy_changes")
    op.drop_column("trajectories", "policy_version")
