"""Audited turns and shadows for the tests of fuses."""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine

from entrogate.store.schema import shadows

EMPTY = b""


def shadow_row(turn_id: str, trajectory_id: str, score: float | None, **changed: Any) -> Any:
    """A shadow of an audited turn, with no more than fuses look at."""
    row: dict[str, Any] = {
        "turn_id": turn_id,
        "trajectory_id": trajectory_id,
        "schema_version": 1,
        "purpose": "audit",
        "way": "mask",
        "created_at": 1_700_000_000.0,
        "duration_seconds": 0.1,
        "model": "scripted",
        "weight_version": "base",
        "finish_reason": "stop",
        "called": False,
        "content": "Berlin.",
        "capture_gap": None,
        "n_kept": 1,
        "n_tokens": 0,
        "estimator": "topk",
        "top_k": 20,
        **dict.fromkeys(("token_ids", "logprobs", "entropy_lower", "margin"), EMPTY),
        **dict.fromkeys(("tail_mass", "p_tool_call"), EMPTY),
        "score": score,
        "judged_by": None if score is None else "gold",
        "judged_at": None if score is None else 1_700_000_001.0,
    }
    return row | changed


def add_shadows(url: str, *rows: dict[str, Any]) -> None:
    """Write them into the store at ``url``, beside whoever has it open."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for row in rows:
            connection.execute(shadows.insert(), row)
    engine.dispose()
