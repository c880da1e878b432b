"""What the store holds, in the form in which clients get it."""

from typing import Any

import orjson

from entrogate.store import Store


async def trajectory_json(
    store: Store, trajectory_id: str, *, tokens: bool = False
) -> dict[str, Any]:
    """`Store.get_trajectory` as the JSON of ``/v1/trajectories/{id}``."""
    found = await store.get_trajectory(trajectory_id, tokens=tokens)
    return orjson.loads(orjson.dumps(found))
