"""The first schema.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "policies",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_policies")),
    )
    op.create_table(
        "toolsets",
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_toolsets")),
    )
    op.create_table(
        "trajectories",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("n_turns", sa.Integer(), nullable=False),
        sa.Column("n_branches", sa.Integer(), nullable=False),
        sa.Column("n_calls", sa.Integer(), nullable=False),
        sa.Column("n_suppressed", sa.Integer(), nullable=False),
        sa.Column("n_replayed", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("wasted_tokens", sa.Integer(), nullable=False),
        sa.Column("incomplete_reason", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trajectories")),
    )
    op.create_index(
        op.f("ix_trajectories_created_at_id"), "trajectories", ["created_at", "id"], unique=False
    )
    op.create_index(
        op.f("ix_trajectories_task_id_created_at_id"),
        "trajectories",
        ["task_id", "created_at", "id"],
        unique=False,
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("turn_index", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("branch_index", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("response_id", sa.Text(), nullable=False),
        sa.Column("choice_index", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("duration_seconds", sa.Double, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("weight_version", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("capture_gap", sa.Text(), nullable=True),
        sa.Column("replayed", sa.Boolean(), nullable=False),
        sa.Column("has_calls", sa.Boolean(), nullable=False),
        sa.Column("n_messages", sa.Integer(), nullable=False),
        sa.Column("n_prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("n_tokens", sa.Integer(), nullable=False),
        sa.Column("wasted_tokens", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("sequence_hash", sa.LargeBinary(), nullable=False),
        sa.Column("estimator", sa.Text(), nullable=False),
        sa.Column("top_k", sa.Integer(), nullable=True),
        sa.Column("segment", sa.Text(), nullable=True),
        sa.Column("spans", sa.Text(), nullable=False),
        sa.Column("altered", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("toolset_id", sa.LargeBinary(), nullable=True),
        sa.Column("params", sa.Text(), nullable=False),
        sa.Column("new_messages", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("prompt_offset", sa.Integer(), nullable=False),
        sa.Column("prompt_token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("entropy_lower", sa.LargeBinary(), nullable=False),
        sa.Column("entropy_upper", sa.LargeBinary(), nullable=True),
        sa.Column("margin", sa.LargeBinary(), nullable=False),
        sa.Column("tail_mass", sa.LargeBinary(), nullable=False),
        sa.Column("p_tool_call", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["turns.id"], name=op.f("fk_turns_parent_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["toolset_id"], ["toolsets.id"], name=op.f("fk_turns_toolset_id")),
        sa.ForeignKeyConstraint(
            ["trajectory_id"],
            ["trajectories.id"],
            name=op.f("fk_turns_trajectory_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turns")),
        sa.UniqueConstraint(
            "trajectory_id", "turn_index", name=op.f("uq_turns_trajectory_id_turn_index")
        ),
    )
    op.create_index(op.f("ix_turns_fingerprint"), "turns", ["fingerprint"], unique=False)
    op.create_index(
        op.f("ix_turns_parent_id_branch_index"),
        "turns",
        ["parent_id", "branch_index"],
        unique=False,
    )
    op.create_index(
        op.f("ix_turns_response_id_choice_index"),
        "turns",
        ["response_id", "choice_index"],
        unique=False,
    )
    op.create_table(
        "call_rewards",
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("dense", sa.Double, nullable=True),
        sa.ForeignKeyConstraint(
            ["trajectory_id"],
            ["trajectories.id"],
            name=op.f("fk_call_rewards_trajectory_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name=op.f("fk_call_rewards_turn_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("turn_id", name=op.f("pk_call_rewards")),
    )
    op.create_index(
        op.f("ix_call_rewards_trajectory_id"), "call_rewards", ["trajectory_id"], unique=False
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("features", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("applied", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("propensity", sa.Double, nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("policy_name", sa.Text(), nullable=False),
        sa.Column("policy_version", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name=op.f("fk_calls_turn_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calls")),
        sa.UniqueConstraint("turn_id", "position", name=op.f("uq_calls_turn_id_position")),
    )
    op.create_table(
        "changes",
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("before_lower", sa.Double, nullable=True),
        sa.Column("before_upper", sa.Double, nullable=True),
        sa.Column("after_lower", sa.Double, nullable=True),
        sa.Column("after_upper", sa.Double, nullable=True),
        sa.Column("delta_lower", sa.Double, nullable=True),
        sa.Column("delta_upper", sa.Double, nullable=True),
        sa.Column("delta_normalised", sa.Double, nullable=True),
        sa.Column("reduced", sa.Boolean(), nullable=True),
        sa.Column("null_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name=op.f("fk_changes_turn_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("turn_id", name=op.f("pk_changes")),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text(), nullable=True),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Text(), nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("gold", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(
            ["trajectory_id"],
            ["trajectories.id"],
            name=op.f("fk_feedback_trajectory_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name=op.f("fk_feedback_turn_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
    )
    op.create_index(op.f("ix_feedback_trajectory_id"), "feedback", ["trajectory_id"], unique=False)
    op.create_table(
        "results",
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name=op.f("fk_results_turn_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("turn_id", "call_id", name=op.f("pk_results")),
    )
    op.create_index(op.f("ix_results_call_id"), "results", ["call_id"], unique=False)
    op.create_table(
        "rewards",
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Double, nullable=False),
        sa.Column("sparse", sa.Double, nullable=True),
        sa.Column("n_groups", sa.Integer(), nullable=False),
        sa.Column("n_labelled", sa.Integer(), nullable=False),
        sa.Column("n_reduced", sa.Integer(), nullable=False),
        sa.Column("alpha", sa.Double, nullable=False),
        sa.Column("no_calls", sa.Text(), nullable=False),
        sa.Column("all_unknown", sa.Text(), nullable=False),
        sa.Column("computed_at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(
            ["trajectory_id"],
            ["trajectories.id"],
            name=op.f("fk_rewards_trajectory_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["turn_id"], ["turns.id"], name=op.f("fk_rewards_turn_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trajectory_id", name=op.f("pk_rewards")),
    )


def downgrade() -> None:
    op.drop_table("rewards")
    op.drop_index(op.f("ix_results_call_id"), table_name="results")
    op.drop_table("results")
    op.drop_index(op.f("ix_feedback_trajectory_id"), table_name="feedback")
    op.drop_table("feedback")
    op.drop_table("changes")
    op.drop_table("calls")
    op.drop_index(op.f("ix_call_rewards_trajectory_id"), table_name="call_rewards")
    op.drop_table("call_rewards")
    op.drop_index(op.f("ix_turns_response_id_choice_index"), table_name="turns")
    op.drop_index(op.f("ix_turns_parent_id_branch_index"), table_name="turns")
    op.drop_index(op.f("ix_turns_fingerprint"), table_name="turns")
    op.drop_table("turns")
    op.drop_index(op.f("ix_trajectories_task_id_created_at_id"), table_name="trajectories")
    op.drop_index(op.f("ix_trajectories_created_at_id"), table_name="trajectories")
    op.drop_table("trajectories")
    op.drop_table("toolsets")
    op.drop_table("policies")
