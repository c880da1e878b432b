"""The anthropic SDK, streamed: the agent's loop written out."""

from __future__ import annotations

from typing import Any

from almanac import LOOKUP, TURNS, called, run
from anthropic import AsyncAnthropic

TOOL: Any = {
    "name": LOOKUP["name"],
    "description": LOOKUP["description"],
    "input_schema": LOOKUP["parameters"],
}


async def answer(gateway: str, question: str) -> str:
    """The model's answer, after as many calls as it makes."""
    messages: list[Any] = [{"role": "user", "content": question}]
    async with AsyncAnthropic(base_url=gateway, api_key="none") as client:
        for _ in range(TURNS):
            async with client.messages.stream(
                model="almanac",
                max_tokens=192,
                messages=messages,
                tools=[TOOL],
                extra_body={"temperature": 0},
            ) as stream:
                message = await stream.get_final_message()
            calls: list[Any] = [block for block in message.content if block.type == "tool_use"]
            if not calls:
                return "".join(block.text for block in message.content if block.type == "text")
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": called(call.input)}
                for call in calls
            ]
            messages += [
                {"role": "assistant", "content": message.content},
                {"role": "user", "content": results},
            ]
    return ""  # no answer in so many turns


if __name__ == "__main__":
    run(answer)
