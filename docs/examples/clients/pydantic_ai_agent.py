"""pydantic-ai, through Chat Completions."""

from __future__ import annotations

from almanac import LOOKUP, lookup, run
from pydantic_ai import Agent, Tool
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

TOOL = Tool.from_schema(
    lookup,
    name=LOOKUP["name"],
    description=LOOKUP["description"],
    json_schema=LOOKUP["parameters"],
)


async def answer(gateway: str, question: str) -> str:
    """The model's answer, after as many calls as it makes."""
    provider = OpenAIProvider(base_url=f"{gateway}/v1", api_key="none")
    model = OpenAIChatModel("almanac", provider=provider)
    agent = Agent(model, tools=[TOOL], model_settings={"max_tokens": 192, "temperature": 0})
    result = await agent.run(question)
    return result.output


if __name__ == "__main__":
    run(answer)
