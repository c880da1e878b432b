"""The tables, as SQLAlchemy Core metadata. docs/store.md explains each column.

Token arrays are little-endian blobs (see ``codec``), other structures JSON text. The migrations
under ``migrations/versions`` create the same tables; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    literal_column,
)

SCHEMA_VERSION = 1
"""Stored with every trajectory and turn: what the columns of that record mean."""

REVISION = "0011"
"""The newest migration this code knows (a test compares it with the scripts)."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def unindexed(column: Column[str]) -> ColumnElement[str]:
    """``column``, but SQLite, which knows no statistics, does not begin with its index."""
    return func.coalesce(column, literal_column("''"))


TOKEN_ARRAYS = (
    *("token_ids", "logprobs", "entropy_lower", "entropy_upper"),
    *("margin", "tail_mass", "p_tool_call"),
)
"""Columns of what is captured of sampled tokens; no upper bounds: the same as the lower ones."""


def _token_arrays() -> list[Column[bytes]]:
    return [Column(name, LargeBinary, nullable=name == "entropy_upper") for name in TOKEN_ARRAYS]


# One row a transaction that changed trajectories: numbered in their order, dated by the database's
# clock on Postgres and the gateway's on SQLite. Numbers are never given twice.
commits = Table(
    "commits",
    metadata,
    Column(
        "sequence",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("written_at", Double, nullable=False),
    sqlite_autoincrement=True,
)

trajectories = Table(
    "trajectories",
    metadata,
    Column("id", Text, primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("tenant", Text, nullable=False, server_default=""),
    Column("task_id", Text),
    Column("model", Text, nullable=False),
    Column("mode", Text),
    Column("metadata", Text),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("n_turns", Integer, nullable=False),
    Column("n_branches", Integer, nullable=False),
    Column("n_calls", Integer, nullable=False),
    Column("n_suppressed", Integer, nullable=False),
    Column("n_replayed", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("wasted_tokens", Integer, nullable=False),
    Column("incomplete_reason", Text),
    Column("outcome", Double),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    Column("policy_version", Text, nullable=False, server_default=""),
    Column("policy_changes", Integer, nullable=False, server_default="0"),
    Index(None, "sequence", "id"),
    Index(None, "created_at", "id"),
    Index(None, "task_id", "created_at", "id"),
    Index(None, "tenant", "created_at", "id"),
)

toolsets = Table(
    "toolsets",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("content", Text, nullable=False),
)

turns = Table(
    "turns",
    metadata,
    Column("id", Text, primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column(
        "trajectory_id", Text, ForeignKey("trajectories.id", ondelete="CASCADE"), nullable=False
    ),
    Column("turn_index", Integer, nullable=False),
    Column("parent_id", Text, ForeignKey("turns.id", ondelete="SET NULL")),
    Column("branch_index", Integer, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("response_id", Text, nullable=False),
    Column("choice_index", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("duration_seconds", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("weight_version", Text, nullable=False),
    Column("finish_reason", Text),
    Column("error", Text),
    Column("capture_gap", Text),
    Column("replayed", Boolean, nullable=False),
    Column("has_calls", Boolean, nullable=False),
    Column("n_messages", Integer, nullable=False),
    Column("n_prompt_tokens", Integer, nullable=False),
    Column("n_tokens", Integer, nullable=False),
    Column("wasted_tokens", Integer, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("sequence_hash", LargeBinary, nullable=False),
    Column("estimator", Text, nullable=False),
    Column("top_k", Integer),
    Column("segment", Text),
    Column("spans", Text, nullable=False),
    Column("altered", Text, nullable=False),
    Column("metadata", Text),
    Column("toolset_id", LargeBinary, ForeignKey("toolsets.id")),
    Column("params", Text, nullable=False),
    Column("new_messages", Text, nullable=False),
    Column("response", Text, nullable=False),
    Column("prompt_offset", Integer, nullable=False),
    Column("prompt_token_ids", LargeBinary, nullable=False),
    *_token_arrays(),
    Column("key_id", Text),
    UniqueConstraint("trajectory_id", "turn_index"),
    Index(None, "parent_id", "branch_index"),
    Index(None, "fingerprint"),
    Index(None, "response_id", "choice_index"),
    Index(None, "toolset_id"),
)

calls = Table(
    "calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("turn_id", Text, ForeignKey("turns.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("features", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("applied", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("mode", Text, nullable=False),
    Column("policy_name", Text, nullable=False),
    Column("policy_version", Text, nullable=False),
    UniqueConstraint("turn_id", "position"),
    Index(None, "name", "applied"),
    Index(None, "applied"),
)

# call_id names no foreign key: the turn that proposed the call may be lost to a recording fault,
# and its result is still worth keeping. A fork brings the same result back once more.
results = Table(
    "results",
    metadata,
    Column("turn_id", Text, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("call_id", Text, primary_key=True),
    Column("content", Text, nullable=False),
    Index(None, "call_id"),
)

changes = Table(
    "changes",
    metadata,
    Column("turn_id", Text, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("before_lower", Double),
    Column("before_upper", Double),
    Column("after_lower", Double),
    Column("after_upper", Double),
    Column("delta_lower", Double),
    Column("delta_upper", Double),
    Column("delta_normalised", Double),
    Column("reduced", Boolean),
    Column("null_reason", Text),
)

policies = Table(
    "policies",
    metadata,
    Column("version", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

# What an admin ordered for an arm, over what the gateways' settings give (gate.arms.Order).
policy_orders = Table(
    "policy_orders",
    metadata,
    Column("arm", Text, primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("share", Double, nullable=False),
    Column("instead_of", Text, nullable=False),
    Column("ordered_at", Double, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column(
        "trajectory_id", Text, ForeignKey("trajectories.id", ondelete="CASCADE"), nullable=False
    ),
    Column("turn_id", Text, ForeignKey("turns.id", ondelete="CASCADE")),
    Column("target", Text, nullable=False),
    Column("target_id", Text, nullable=False),
    Column("score", Double, nullable=False),
    Column("answer", Text),
    Column("gold", Text),
    Column("comment", Text),
    Column("created_at", Double, nullable=False),
    Column("key_id", Text),
    Index(None, "trajectory_id"),
    Index(None, "turn_id"),
)

# One row per trajectory with an outcome: the last feedback wins. The labels are those on the path
# from the first turn to ``turn_id``, the last turn that the feedback speaks of.
rewards = Table(
    "rewards",
    metadata,
    Column(
        "trajectory_id", Text, ForeignKey("trajectories.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("turn_id", Text, ForeignKey("turns.id", ondelete="CASCADE"), nullable=False),
    Column("outcome", Double, nullable=False),
    Column("sparse", Double),
    Column("n_groups", Integer, nullable=False),
    Column("n_labelled", Integer, nullable=False),
    Column("n_reduced", Integer, nullable=False),
    Column("alpha", Double, nullable=False),
    Column("no_calls", Text, nullable=False),
    Column("all_unknown", Text, nullable=False),
    Column("computed_at", Double, nullable=False),
    Index(None, "turn_id"),
)

# A database may have served several base models: a version belongs to one of them.
weights = Table(
    "weights",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("share", Double, nullable=False),
    Column("promoted_at", Double),
    Column("state", Text, nullable=False),
    Column("published_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("model", "name"),
)

# What the model would have said in place of the calls of a turn: the turn's tokens before its
# first call, then these. ``score`` in [0, 1] is how right that is, ``judged_by`` who said so.
shadows = Table(
    "shadows",
    metadata,
    Column("turn_id", Text, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column(
        "trajectory_id", Text, ForeignKey("trajectories.id", ondelete="CASCADE"), nullable=False
    ),
    Column("schema_version", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("way", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("duration_seconds", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("weight_version", Text, nullable=False),
    Column("finish_reason", Text),
    Column("called", Boolean, nullable=False),
    Column("content", Text, nullable=False),
    Column("capture_gap", Text),
    Column("n_kept", Integer, nullable=False),
    Column("n_tokens", Integer, nullable=False),
    Column("estimator", Text, nullable=False),
    Column("top_k", Integer),
    *_token_arrays(),
    Column("score", Double),
    Column("judged_by", Text),
    Column("judged_at", Double),
    Index(None, "trajectory_id"),
    Index(None, "purpose", "judged_at"),
)

# The fuse of each tool under each policy, as the audit of suppressed calls left it. What was
# committed up to ``armed_sequence`` does not count.
fuses = Table(
    "fuses",
    metadata,
    Column("policy_version", Text, primary_key=True),
    Column("tool", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("armed_at", Double, nullable=False),
    Column("armed_sequence", BigInteger, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("n", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("lower", Double),
    Column("upper", Double),
)

# Keyed by the turn that made the calls; its label is the change of the next turn on the path.
call_rewards = Table(
    "call_rewards",
    metadata,
    Column("turn_id", Text, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column(
        "trajectory_id", Text, ForeignKey("trajectories.id", ondelete="CASCADE"), nullable=False
    ),
    Column("dense", Double),
    Index(None, "trajectory_id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("shown", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("requests_per_minute", Integer),
    Column("concurrency", Integer),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)

# What was served under a name from a commit on: its tokenizer and chat template, as hashes.
models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("tokenizer_hash", Text, nullable=False),
    Column("chat_template_hash", Text, nullable=False),
)

# What was erased, by a digest of its id: an id that a client chose may itself say something.
erasures = Table(
    "erasures",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("erased_at", Double, nullable=False),
)

# Rows are only ever added: triggers (of the migration) refuse every change.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("detail", Text),
    Index(None, "tenant", "id"),
    Index(None, "actor", "id"),
    Index(None, "action", "id"),
)
