"""Tombstones of what was erased, the audit, and the key behind each turn and each feedback.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SQLITE = """
CREATE TRIGGER audit_no_{change} BEFORE {CHANGE} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END
"""
_POSTGRES = (
    """
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit is append-only'; END $$
""",
    """
CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()
""",
)


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("erased_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_erasures")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_tenant_id"), "audit", ["tenant", "id"])
    op.create_index(op.f("ix_audit_actor_id"), "audit", ["actor", "id"])
    op.create_index(op.f("ix_audit_action_id"), "audit", ["action", "id"])
    op.add_column("turns", sa.Column("key_id", sa.Text(), nullable=True))
    op.add_column("feedback", sa.Column("key_id", sa.Text(), nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        statements = _POSTGRES
    else:
        changes = ("update", "delete")
        statements = tuple(_SQLITE.format(change=c, CHANGE=c.upper()) for c in changes)
    for statement in statements:
        op.execute(statement)


def losses(connection: sa.Connection) -> list[str]:
    lost: list[str] = []
    for table, what in (("audit", "entries of the audit"), ("erasures", "tombstones")):
        counted = sa.text(f"SELECT count(*) FROM {table}")  # nosec B608 (named above)
        rows = connection.execute(counted).scalar_one()
        lost += [f"{rows} {what}"] if rows else []
    return lost


def downgrade() -> None:
    op.drop_column("feedback", "key_id")
    op.drop_column("turns", "key_id")
    op.drop_table("audit")
    op.drop_table("erasures")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_is_append_only()")
