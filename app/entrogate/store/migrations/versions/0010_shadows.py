"""Answers without their calls, and the fuses of audited tools.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_shadows()
    op.create_table(
        "fuses",
        sa.Column("policy_version", sa.Text(), nullable=False),
        sa.Column("tool", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("armed_at", sa.Double, nullable=False),
        sa.Column("armed_sequence", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("lower", sa.Double),
        sa.Column("upper", sa.Double),
        sa.PrimaryKeyConstraint("policy_version", "tool", name=op.f("pk_fuses")),
    )


def _create_shadows() -> None:
    op.create_table(
        "shadows",
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("way", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("duration_seconds", sa.Double, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("weight_version", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("called", sa.Boolean(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("capture_gap", sa.Text()),
        sa.Column("n_kept", sa.Integer(), nullable=False),
        sa.Column("n_tokens", sa.Integer(), nullable=False),
        sa.Column("estimator", sa.Text(), nullable=False),
        sa.Column("top_k", sa.Integer()),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("entropy_lower", sa.LargeBinary(), nullable=False),
        sa.Column("entropy_upper", sa.LargeBinary()),
        sa.Column("margin", sa.LargeBinary(), nullable=False),
        sa.Column("tail_mass", sa.LargeBinary(), nullable=False),
        sa.Column("p_tool_call", sa.LargeBinary(), nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("judged_by", sa.Text()),
        sa.Column("judged_at", sa.Double),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name=op.f("fk_shadows_turn_id_turns"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["trajectory_id"],
            ["trajectories.id"],
            name=op.f("fk_shadows_trajectory_id_trajectories"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("turn_id", name=op.f("pk_shadows")),
    )
    op.create_index(op.f("ix_shadows_trajectory_id"), "shadows", ["trajectory_id"])
    op.create_index(op.f("ix_shadows_purpose_judged_at"), "shadows", ["purpose", "judged_at"])


def losses(connection: sa.Connection) -> list[str]:
    counted = (
        (sa.text("SELECT count(*) FROM shadows"), "answers without calls"),
        (sa.text("SELECT count(*) FROM fuses"), "states of fuses"),
    )
    found = [(connection.execute(query).scalar_one(), what) for query, what in counted]
    return [f"{rows} {what}" for rows, what in found if rows]


def downgrade() -> None:
    op.drop_table("fuses")
    op.drop_table("shadows")
