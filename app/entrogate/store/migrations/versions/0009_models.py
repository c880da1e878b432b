"""Tokenizers and chat templates of the models that were served.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("tokenizer_hash", sa.Text(), nullable=False),
        sa.Column("chat_template_hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "sequence", name=op.f("pk_models")),
    )


def losses(connection: sa.Connection) -> list[str]:
    rows = connection.execute(sa.text("SELECT count(*) FROM models")).scalar_one()
    return [f"{rows} tokenizer hashes of models"] if rows else []


def downgrade() -> None:
    op.drop_table("models")
