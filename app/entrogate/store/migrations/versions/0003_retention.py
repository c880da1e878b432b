"""Indexes for retention: what hangs on a turn or a list of tools is found when it goes.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_turns_toolset_id"), "turns", ["toolset_id"])
    op.create_index(op.f("ix_feedback_turn_id"), "feedback", ["turn_id"])
    op.create_index(op.f("ix_rewards_turn_id"), "rewards", ["turn_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_rewards_turn_id"), table_name="rewards")
    op.drop_index(op.f("ix_feedback_turn_id"), table_name="feedback")
    op.drop_index(op.f("ix_turns_toolset_id"), table_name="turns")
