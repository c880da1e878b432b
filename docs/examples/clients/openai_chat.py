"""The openai SDK, Chat Completions: the agent's loop written out."""

from __future__ import annotations

from typing import Any

from almanac import LOOKUP, TURNS, called, run
from openai import AsyncOpenAI


async def answer(gateway: str, question: str) -> str:
    """The model's answer, after as many calls as it makes."""
    messages: list[Any] = [{"role": "user", "content": question}]
    async with AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none") as client:
        for _ in range(TURNS):
            completion = await client.chat.completions.create(
                model="almanac",
                messages=messages,
                tools=[{"type": "function", "function": LOOKUP}],  # type: ignore[list-item]
                max_tokens=192,
                temperature=0,
            )
            message = completion.choices[0].message
            if not message.tool_calls:
                return message.content or ""
            messages.append(message.model_dump(exclude_none=True))  # its reasoning too
            for call in message.tool_calls:
                result = called(call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return ""  # no answer in so many turns


if __name__ == "__main__":
    run(answer)
