"""Which tokenizer and chat template were served under a name, from which commit on."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from entrogate.model_hashes import ModelHashes
from entrogate.store.commits import next_commit
from entrogate.store.schema import models


def remember_model(connection: Connection, names: Iterable[str], hashes: ModelHashes) -> None:
    """Note what is served under these names from here on, where it is not what was served last."""
    new = [name for name in sorted(set(names)) if _latest(connection, name) != hashes]
    if not new:
        return
    sequence = next_commit(connection)
    rows = [
        {
            "name": name,
            "sequence": sequence,
            "tokenizer_hash": hashes.tokenizer,
            "chat_template_hash": hashes.chat_template,
        }
        for name in new
    ]
    connection.execute(models.insert(), rows)


def _latest(connection: Connection, name: str) -> ModelHashes | None:
    query = select(models).where(models.c.name == name).order_by(models.c.sequence.desc())
    row = connection.execute(query.limit(1)).first()
    if row is None:
        return None
    return ModelHashes(tokenizer=row.tokenizer_hash, chat_template=row.chat_template_hash)
