"""The OpenAI Agents SDK, through Responses."""

from __future__ import annotations

from typing import Any

from agents import Agent, FunctionTool, ModelSettings, OpenAIResponsesModel, Runner
from agents import set_tracing_disabled as disable_tracing
from almanac import LOOKUP, called, run
from openai import AsyncOpenAI

disable_tracing(True)  # it would go to OpenAI


async def call(_: Any, arguments: str) -> str:
    """Run the tool."""
    return called(arguments)


TOOL = FunctionTool(
    name=LOOKUP["name"],
    description=LOOKUP["description"],
    params_json_schema=LOOKUP["parameters"],
    on_invoke_tool=call,
    strict_json_schema=False,
)


async def answer(gateway: str, question: str) -> str:
    """The model's answer, after as many calls as it makes."""
    async with AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none") as client:
        agent = Agent(
            name="almanac",
            model=OpenAIResponsesModel("almanac", client),
            tools=[TOOL],
            model_settings=ModelSettings(max_tokens=192, temperature=0),
        )
        result = await Runner.run(agent, question)
    return str(result.final_output)


if __name__ == "__main__":
    run(answer)
