"""A pretrained model whose calls are Python, without a token that opens them, on a real vLLM."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate.engine.environment import ADDRESS_VARIABLE
from entrogate.gate.features import from_json
from entrogate.settings import ManagedSettings
from entrogate.upstream.parsers import choose_parsers
from entrogate.upstream.vllm_command import command_line, environment, installed_vllm
from entrogate_lab.bench.processes import child, free_port
from tests.e2e import smollm2
from tests.e2e.conftest import Served, gateway_process
from tests.integration.harness import CHAT, message_of_stream

NAME = "smollm2"
TOOL = {
    "type": "function",
    "function": {
        "name": "capital",
        "description": "The capital of a country.",
        "parameters": {"type": "object", "properties": {"country": {"type": "string"}}},
    },
}
# As it was trained, and with examples of calls where there are tools.
TEMPLATE = """\
{%- if tools %}{% for shown in ('Italy', 'Peru', 'Kenya', 'Japan') %}<|im_start|>user
What is the capital of {{ shown }}?<|im_end|>
<|im_start|>assistant
[capital(country='{{ shown }}')]<|im_end|>
{% endfor %}{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ASKED = ("France", "Spain", "Norway", "Egypt", "Chile", "Greece")
ABOVE = 1e6  # a threshold that every entropy is below


@pytest.fixture(scope="module")
def pythonic(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, str]]:
    """The URL of the vLLM, and where its plugin sends captures."""
    model = str(smollm2.folder())
    build = installed_vllm()
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    template.write_text(TEMPLATE)
    captures = f"ipc://{tmp_path_factory.mktemp('captures')}/captures"
    settings = ManagedSettings(
        model=model,
        served_model_name=NAME,
        tool_call_parser="pythonic",
        reasoning_parser="none",
        extra_args=(
            *("--dtype", "float32", "--max-model-len", "1024"),
            *("--chat-template", str(template)),
        ),
    )
    port = free_port()
    command = command_line(settings, parsers=choose_parsers(settings), port=port, cpu=build.cpu)
    url = f"http://127.0.0.1:{port}"
    with child(
        command[command.index("-m") + 1 :],
        url=url,
        ready="/health",
        log=tmp_path_factory.mktemp("vllm") / "vllm.log",
        environment={**environment({}, model=model, cpu=build.cpu), ADDRESS_VARIABLE: captures},
        timeout_seconds=600,
    ):
        yield url, captures


def asking(country: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is the capital of {country}?"}]
    body = {"model": NAME, "messages": messages, "tools": [TOOL], "temperature": 0}
    return {**body, "max_tokens": 48, **fields}


def served(
    stack: ExitStack, pythonic: tuple[str, str], folder: Path, *, exact: bool, threshold: float
) -> Served:
    policy = {
        "schema_version": 1,
        "name": "draft",
        "mode": "enforce",
        "signal": {"statistic": "draft_entropy_max"},
        "tools": {"capital": {"threshold": threshold}},
    }
    (folder / "policy.yaml").write_text(json.dumps(policy))
    options = {
        "gate__policy": str(folder / "policy.yaml"),
        "upstream__capture": pythonic[1] if exact else "off",
        "upstream__vocab_size": "49152",
    }
    return stack.enter_context(gateway_process(pythonic[0], folder, **options))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_a_call_is_suppressed_by_what_the_model_says_without_its_tools(
    pythonic: tuple[str, str], tmp_path: Path, exact: bool, stream: bool
) -> None:
    called = 0
    with ExitStack() as stack:
        gateway = served(stack, pythonic, tmp_path, exact=exact, threshold=ABOVE)
        client = stack.enter_context(gateway.client())
        assert client.get("/ready").json()["upstream"]["signals"] == ["draft"]
        for country in ASKED:
            body = asking(country)
            direct = httpx.post(f"{pythonic[0]}{CHAT}", json=body, timeout=300).json()
            if not direct["choices"][0]["message"].get("tool_calls"):
                continue
            called += 1
            plain = {name: value for name, value in body.items() if name != "tools"}
            said = httpx.post(f"{pythonic[0]}{CHAT}", json=plain, timeout=300).json()
            answer = client.post(CHAT, json={**body, "stream": stream})
            assert answer.status_code == 200, answer.text
            message = (
                message_of_stream(answer.content)
                if stream
                else answer.json()["choices"][0]["message"]
            )
            assert not message.get("tool_calls")
            assert message["content"] == said["choices"][0]["message"]["content"]
            name = answer.headers["x-entrogate-trajectory-id"]
            (turn,) = client.get(f"/v1/trajectories/{name}").json()["turns"]
            (call,) = turn["calls"]
            assert call["decision"]["reason"] == "certain"
            draft = from_json(json.dumps(call["features"])).draft
            assert draft is not None
            assert draft.n_tokens >= 1
            assert turn["capture_gap"] is not None  # its tokens follow another prompt
    assert called >= 3


def test_above_the_threshold_the_call_goes_through(
    pythonic: tuple[str, str], tmp_path: Path
) -> None:
    called = 0
    with ExitStack() as stack:
        gateway = served(stack, pythonic, tmp_path, exact=True, threshold=0.0)
        client = stack.enter_context(gateway.client())
        for country in ASKED:
            answer = client.post(CHAT, json=asking(country)).json()
            calls = answer["choices"][0]["message"].get("tool_calls") or []
            called += len(calls)
            for call in calls:
                assert json.loads(call["function"]["arguments"]) == {"country": country}
    assert called >= 3
