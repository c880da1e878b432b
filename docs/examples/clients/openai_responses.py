"""The openai SDK, Responses: each request names the response that it goes on from."""

from __future__ import annotations

from typing import Any

from almanac import LOOKUP, TURNS, called, run
from openai import AsyncOpenAI


async def answer(gateway: str, question: str) -> str:
    """The model's answer, after as many calls as it makes."""
    input_: Any = question
    previous: str | None = None
    async with AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none") as client:
        for _ in range(TURNS):
            response = await client.responses.create(
                model="almanac",
                input=input_,
                previous_response_id=previous,
                tools=[{"type": "function", **LOOKUP}],  # type: ignore[list-item]
                max_output_tokens=192,
                temperature=0,
            )
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text
            previous = response.id
            input_ = [
                {
                    "type": "function_call_output",
                    "call_id": call.call_id,
                    "output": called(call.arguments),
                }
                for call in calls
            ]
    return ""  # no answer in so many turns


if __name__ == "__main__":
    run(answer)
