"""The order of commits, which exports follow.

What is there is numbered in the order in which it last changed. Tenants that a way down and up
again emptied are read from the ids once more.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NUMBERED = """
CREATE TEMPORARY TABLE numbered AS
SELECT id, changed_at, row_number() OVER (ORDER BY changed_at, id) AS number FROM (
    SELECT trajectories.id AS id,
           CASE WHEN said.at > trajectories.updated_at THEN said.at ELSE trajectories.updated_at END
               AS changed_at
    FROM trajectories LEFT JOIN (
        SELECT trajectory_id, max(created_at) AS at FROM feedback GROUP BY trajectory_id
    ) AS said ON said.trajectory_id = trajectories.id
) AS changed
"""
_ON_POSTGRES = """
SELECT setval(pg_get_serial_sequence('commits', 'sequence'), (SELECT max(sequence) FROM commits))
WHERE EXISTS (SELECT 1 FROM commits)
"""


def upgrade() -> None:
    op.create_table(
        "commits",
        sa.Column(
            "sequence",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("written_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_commits")),
        sqlite_autoincrement=True,
    )
    op.add_column(
        "trajectories", sa.Column("sequence", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.execute(_NUMBERED)
    op.execute("CREATE UNIQUE INDEX numbered_id ON numbered (id)")
    op.execute("INSERT INTO commits SELECT number, changed_at FROM numbered")
    op.execute(
        "UPDATE trajectories SET sequence ="
        " (SELECT number FROM numbered WHERE numbered.id = trajectories.id)"
    )
    op.execute("DROP TABLE numbered")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_ON_POSTGRES)
    op.create_index(op.f("ix_trajectories_sequence_id"), "trajectories", ["sequence", "id"])
    _derive_tenants()


def _derive_tenants() -> None:
    """The trajectory id says whose it is: ``acme~…``."""
    begins = "split_part(id, '~', 1)"
    if op.get_bind().dialect.name == "sqlite":
        begins = "substr(id, 1, instr(id, '~') - 1)"
    op.execute(
        f"UPDATE trajectories SET tenant = {begins} WHERE id LIKE '%~%' AND tenant = ''"  # nosec B608
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_trajectories_sequence_id"), table_name="trajectories")
    op.drop_column("trajectories", "sequence")
    op.drop_table("commits")
