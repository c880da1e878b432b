"""The durable record of all turns: `Store` is how the rest of Entrogate uses it.

Rooms: ``write`` (the writer and what it writes), ``read``, ``admin`` (keys, copies, migrations,
retention). What they share stands here: the schema, the databases, what a filter is.
"""

from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.decisions import DecidedCall, DecidedTurn
from entrogate.store.read.listing import Page
from entrogate.store.store import Store

__all__ = ["DecidedCall", "DecidedTurn", "Page", "Store", "TrajectoryFilter"]
