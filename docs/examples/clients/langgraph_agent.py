"""LangChain's agent on LangGraph, through ChatOpenAI; ``anthropic`` for ChatAnthropic instead."""

from __future__ import annotations

from almanac import LOOKUP, lookup, run
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import StructuredTool

TOOL = StructuredTool.from_function(
    lookup,
    name=LOOKUP["name"],
    description=LOOKUP["description"],
    args_schema=LOOKUP["parameters"],
)


def openai_model(gateway: str) -> BaseChatModel:
    """Chat Completions."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model="almanac",
        base_url=f"{gateway}/v1",
        api_key=lambda: "none",
        max_tokens=192,
        temperature=0,
    )


def anthropic_model(gateway: str) -> BaseChatModel:
    """The Messages API."""
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(
        model_name="almanac",
        base_url=gateway,
        api_key="none",
        max_tokens_to_sample=192,
        temperature=0,
    )


async def answer(gateway: str, question: str, model: str = "openai") -> str:
    """The model's answer, after as many calls as it makes."""
    chosen = {"openai": openai_model, "anthropic": anthropic_model}[model]
    agent = create_agent(chosen(gateway), [TOOL])
    state = await agent.ainvoke({"messages": [{"role": "user", "content": question}]})
    return state["messages"][-1].text


if __name__ == "__main__":
    run(answer)
