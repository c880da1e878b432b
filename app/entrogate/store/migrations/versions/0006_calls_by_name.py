"""Indexes for lists of trajectories by what was called and what was done with it.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_calls_name_applied"), "calls", ["name", "applied"])
    op.create_index(op.f("ix_calls_applied"), "calls", ["applied"])


def downgrade() -> None:
    op.drop_index(op.f("ix_calls_applied"), table_name="calls")
    op.drop_index(op.f("ix_calls_name_applied"), table_name="calls")
