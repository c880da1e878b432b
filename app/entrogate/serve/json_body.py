"""What all bodies have in common that FastAPI parses for us."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class JsonBody(BaseModel):
    """No unknown fields, and only text that can be stored: Python's parser lets halves of surrogate
    pairs through, which UTF-8 has no bytes for."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _of_whole_characters(cls, body: Any) -> Any:
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(
                "half of a surrogate pair (\\ud800 to \\udfff) is no character: leave it out, or"
                " send the pair"
            ) from None
        return body
