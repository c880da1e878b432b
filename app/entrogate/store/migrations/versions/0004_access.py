"""API keys, and whose trajectories are whose.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("shown", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=True),
        sa.Column("revoked_at", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.add_column("trajectories", sa.Column("tenant", sa.Text(), nullable=False, server_default=""))
    op.create_index(
        op.f("ix_trajectories_tenant_created_at_id"), "trajectories", ["tenant", "created_at", "id"]
    )
    _derive_tenants()


def _derive_tenants() -> None:
    """The trajectory id says whose it is: ``acme~…``."""
    begins = "split_part(id, '~', 1)"
    if op.get_bind().dialect.name == "sqlite":
        begins = "substr(id, 1, instr(id, '~') - 1)"
    op.execute(
        f"UPDATE trajectories SET tenant = {begins} WHERE id LIKE '%~%' AND tenant = ''"  # nosec B608
    )


def losses(connection: sa.Connection) -> list[str]:
    found: list[str] = []
    keys = connection.execute(sa.text("SELECT count(*) FROM api_keys")).scalar_one()
    if keys:
        found.append(f"{keys} API keys")
    tenants = connection.execute(
        sa.text("SELECT count(DISTINCT tenant) FROM trajectories WHERE tenant <> ''")
    ).scalar_one()
    if tenants:
        found.append(f"whose trajectories are whose ({tenants} tenants)")
    return found


def downgrade() -> None:
    op.drop_index(op.f("ix_trajectories_tenant_created_at_id"), table_name="trajectories")
    op.drop_column("trajectories", "tenant")
    op.drop_table("api_keys")
