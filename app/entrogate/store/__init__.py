"""The durable record: schema, migrations, group-commit writer, reading, replay."""

from entrogate.store.decisions import DecidedCall, DecidedTurn
from entrogate.store.reading import Page
from entrogate.store.store import Store

__all__ = ["DecidedCall", "DecidedTurn", "Page", "Store"]
