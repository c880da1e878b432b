"""Shadows: what the model would have said without a call, and that no client notices them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    Running,
    ask,
    calling,
    error_of,
    follow_up,
    message_of,
    message_of_stream,
    policy_file,
    same_bytes,
)
from tests.integration.shadowed import busy, completions, settled, start_shadowing, turns_of

ALWAYS: dict[str, Any] = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}
BERLIN = calling("Ada", masked="It is Berlin.")


async def post(gateway: Running, body: dict[str, Any], *, stream: bool) -> httpx.Response:
    return (await gateway.stream(body))[0] if stream else await gateway.chat(body)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("engine", [True, False])
async def test_a_call_has_both_outcomes(start: Start, stream: bool, engine: bool) -> None:
    async with ScriptedUpstream(engine=engine) as upstream:
        capture = {"capture": upstream.captures if engine else "off"}
        gateway = await start_shadowing(start, url=upstream.url, upstream=capture)
        body = ask(calling("Ada", content="Let me see.", masked=" It is Berlin."), max_tokens=99)
        answer = await post(gateway, body, stream=stream)
        (turn,) = await turns_of(gateway, answer, tokens="true")
        (resumed,) = completions(upstream)
    assert turn["response"]["tool_calls"]
    shadow = turn["shadow"]
    assert shadow["content"].replace("\n", "") == "Let me see. It is Berlin."
    assert (shadow["purpose"], shadow["way"], shadow["called"]) == ("sample", "mask", False)
    assert (shadow["finish_reason"], shadow["capture_gap"]) == ("stop", None)
    assert shadow["estimator"] == turn["estimator"] == ("exact" if engine else "topk")
    assert (shadow["score"], shadow["judged_by"]) == (None, None)
    kept = turn["tokens"]["token_ids"][: shadow["n_kept"]]
    assert resumed["prompt"] == turn["tokens"]["prompt_token_ids"] + kept
    (call_id,) = resumed["logit_bias"]
    assert turn["tokens"]["token_ids"][shadow["n_kept"]] == int(call_id)
    tokens = shadow["tokens"]
    assert {len(values) for values in tokens.values()} == {shadow["n_tokens"]}
    assert shadow["n_tokens"] > 3
    assert int(call_id) not in tokens["token_ids"]
    assert all(value is not None for value in tokens["entropy_upper"])


@pytest.mark.parametrize("stream", [True, False])
async def test_it_is_what_a_suppression_would_have_sent(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool
) -> None:
    """Asked with the same tokens, bias and sampling; it says the same."""
    body = ask(BERLIN, max_tokens=99, seed=7, temperature=0.5, stop=["never"])
    observing = await start_shadowing(start)
    answer = await post(observing, body, stream=stream)
    (turn,) = await turns_of(observing, answer)
    store = {"url": f"sqlite:///{folder / 'other.db'}"}
    enforcing = await start(policy=policy_file(folder, **ALWAYS), store=store)
    answer = await post(enforcing, body, stream=stream)
    (suppressed,) = (await enforcing.trajectory(answer))["turns"]
    shadow, real = completions(upstream)
    assert shadow == real | {"stream": False}
    assert turn["shadow"]["content"] == suppressed["response"]["content"]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_client_gets_the_same_bytes(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool
) -> None:
    bodies = [
        ask(BERLIN),
        ask({"content": "No call."}),
        ask(calling("Ada", "Bob")),
        ask(BERLIN, n=2),
    ]
    plain = await start()
    url = f"sqlite:///{folder / 'other.db'}"
    shadowing = await start_shadowing(start, store={"url": url})
    for body in bodies:
        if stream:
            first, second = (await plain.stream(body))[1], (await shadowing.stream(body))[1]
        else:
            first = (await plain.chat(body)).content
            second = (await shadowing.chat(body)).content
        assert same_bytes(first) == same_bytes(second)
        await settled(shadowing)
    assert len(completions(upstream)) == 4  # one, none, one for both calls, two choices


async def test_without_the_setting_nothing_is_decoded(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    (turn,) = await turns_of(gateway, await gateway.chat(ask(BERLIN)))
    assert turn["shadow"] is None
    assert completions(upstream) == []


async def test_the_client_does_not_wait_for_it(upstream: ScriptedUpstream, start: Start) -> None:
    """The model server holds back every shadow; the client has its answer, and the next ones."""
    gateway = await start_shadowing(start)
    upstream.completions.clear()
    body = ask(BERLIN)
    for number in range(4):  # more than are decoded at a time
        answer = await gateway.chat(body | {"user": str(number)})
        assert message_of(answer)["tool_calls"]
    assert message_of(await gateway.chat(follow_up(body, message_of(answer), "Berlin")))["content"]
    (turn, _) = (await gateway.trajectory(answer))["turns"]
    assert turn["shadow"] is None
    upstream.completions.set()
    turn, _ = await turns_of(gateway, answer)
    assert turn["shadow"]["content"].strip() == "It is Berlin."


async def test_it_waits_while_clients_turns_are_under_way(
    upstream: ScriptedUpstream, start: Start
) -> None:
    gateway = await start_shadowing(start, shadow={"busy_turns": 1})
    async with busy(gateway, upstream):
        answer = await gateway.chat(ask(BERLIN))
        assert await gateway.metric("entrogate_shadows_waiting") == 1
        (turn,) = (await gateway.trajectory(answer))["turns"]
        assert turn["shadow"] is None
        assert completions(upstream) == []
    (turn,) = await turns_of(gateway, answer)
    assert turn["shadow"]["content"].strip() == "It is Berlin."
    assert await gateway.metric("entrogate_shadows_waiting") == 0


async def test_beyond_the_limit_they_are_dropped_and_counted(
    upstream: ScriptedUpstream, start: Start
) -> None:
    gateway = await start_shadowing(start, shadow={"busy_turns": 1, "queue_limit": 2})
    async with busy(gateway, upstream):
        answers = [await gateway.chat(ask(BERLIN, text=str(n))) for n in range(5)]
    found = [await turns_of(gateway, answer) for answer in answers]
    assert [turn["shadow"] is not None for (turn,) in found] == [True, True, False, False, False]
    counted = await shadows_counted(gateway)
    assert counted == {"stored": 2, "dropped": 3}


async def shadows_counted(gateway: Running, **labels: str) -> dict[str, float]:
    outcomes = ("stored", "dropped", "unavailable", "no_room", "failed", "unstored")
    name = "entrogate_shadows_total"
    found = {each: await gateway.metric(name, outcome=each, **labels) for each in outcomes}
    return {each: count for each, count in found.items() if count}


async def test_a_trajectory_is_sampled_whole(upstream: ScriptedUpstream, start: Start) -> None:
    """Every call turn of a sampled trajectory has one, and no turn of the others."""
    gateway = await start_shadowing(start, shadow={"share": 0.5})
    n_sampled, n = 0, 60
    for number in range(n):
        body = ask(calling("Ada"), calling("Bob"), {"content": "It is he."}, text=str(number))
        answer = await gateway.chat(body)
        for result in ("a", "b"):
            body = follow_up(body, message_of(answer), result)
            answer = await gateway.chat(body)
        turns = await turns_of(gateway, answer)
        sampled = [turn["shadow"] is not None for turn in turns]
        assert sampled in ([True, True, False], [False, False, False])
        n_sampled += sampled[0]
    assert 15 <= n_sampled <= 45  # P = 1e-4 at most, on both sides together
    assert len(completions(upstream)) == 2 * n_sampled


async def test_a_tool_may_have_a_share_of_its_own(upstream: ScriptedUpstream, start: Start) -> None:
    gateway = await start(shadow={"share": 0.0, "tools": {"lookup": 1.0}})
    for name, has_one in {"lookup": True, "search": False}.items():
        answer = await gateway.chat(ask(calling("Ada", name=name)))
        (turn,) = await turns_of(gateway, answer)
        assert (turn["shadow"] is not None) is has_one
    both = calling("Ada")
    both["calls"].append({"name": "search", "arguments": {}})
    (turn,) = await turns_of(gateway, await gateway.chat(ask(both)))
    assert turn["shadow"] is not None


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"tool_choice": "required"}, {}),
        ({"tool_choice": {"type": "function", "function": {"name": "lookup"}}}, {}),
        ({"store": False}, {}),
        ({}, {"x_entrogate_record": "none"}),
    ],
)
async def test_none_where_the_model_had_to_call_or_nothing_is_kept(
    upstream: ScriptedUpstream,
    start: Start,
    fields: dict[str, Any],
    headers: dict[str, str],
) -> None:
    gateway = await start_shadowing(start)
    await gateway.chat(ask(BERLIN, **fields), **headers)
    await settled(gateway)
    assert completions(upstream) == []
    assert await shadows_counted(gateway) == {}


async def test_none_for_what_was_suppressed(
    upstream: ScriptedUpstream, start: Start, folder: Path
) -> None:
    gateway = await start_shadowing(start, policy=policy_file(folder, **ALWAYS))
    (turn,) = await turns_of(gateway, await gateway.chat(ask(BERLIN)))
    assert turn["shadow"] is None
    assert len(completions(upstream)) == 1


async def test_an_audited_call_always_has_one(
    upstream: ScriptedUpstream, start: Start, folder: Path
) -> None:
    """Of the calls that the policy suppresses, those that the audit lets through, whatever the
    share is."""
    audit = {"share": 0.5, "max_loss": 0.05, "delta": 0.1}
    policy = policy_file(folder, **ALWAYS, audit=audit)
    gateway = await start(policy=policy)
    through = 0
    for number in range(40):
        answer = await gateway.chat(ask(BERLIN, text=str(number)))
        (turn,) = await turns_of(gateway, answer)
        (call,) = turn["calls"]
        audited = call["decision"]["applied"] == "allow"
        assert (turn["shadow"] is not None) is audited
        if audited:
            assert call["decision"]["action"] == "suppress"
            assert turn["shadow"]["purpose"] == "audit"
        through += audited
    assert 8 <= through <= 32  # P < 3e-4
    assert await shadows_counted(gateway, purpose="audit") == {"stored": through}


async def test_audits_go_before_samples(
    upstream: ScriptedUpstream, start: Start, folder: Path
) -> None:
    audit = {"share": 0.999, "max_loss": 0.05, "delta": 0.1}
    policy = policy_file(folder, **ALWAYS, audit=audit)
    shadow = {"busy_turns": 1, "queue_limit": 1, "concurrency": 1}
    gateway = await start_shadowing(start, policy=policy, shadow=shadow)
    async with busy(gateway, upstream):
        sample = await gateway.chat(ask(calling("Ada", name="search")))
        audited = await gateway.chat(ask(BERLIN))
    (kept,) = await turns_of(gateway, audited)
    assert kept["shadow"]["purpose"] == "audit"
    (left_out,) = await turns_of(gateway, sample)
    assert left_out["shadow"] is None
    assert await shadows_counted(gateway, purpose="sample") == {"dropped": 1}


async def test_a_shadow_that_calls_again_is_kept_as_what_it_is(start: Start) -> None:
    gateway = await start_shadowing(start)
    spelled = json.dumps({"name": "search", "arguments": {"entity": "Ada"}})
    (turn,) = await turns_of(gateway, await gateway.chat(ask(calling("Ada", masked=spelled))))
    assert turn["shadow"]["called"] is True
    assert turn["shadow"]["content"].strip() == spelled
    assert await gateway.metric("entrogate_shadows_called_total") == 1


async def test_max_tokens_bounds_it(upstream: ScriptedUpstream, start: Start) -> None:
    gateway = await start_shadowing(start, shadow={"max_tokens": 3})
    (turn,) = await turns_of(gateway, await gateway.chat(ask(BERLIN)))
    assert (turn["shadow"]["n_tokens"], turn["shadow"]["finish_reason"]) == (3, "length")
    assert await gateway.metric("entrogate_shadow_tokens_total") == 3


async def test_a_model_server_that_fails_is_counted(
    upstream: ScriptedUpstream, start: Start
) -> None:
    gateway = await start_shadowing(start)
    await gateway.chat(ask(BERLIN))
    await settled(gateway)
    upstream.refuse_completions = True
    (turn,) = await turns_of(gateway, await gateway.chat(ask(BERLIN, text="again")))
    assert turn["shadow"] is None
    assert await shadows_counted(gateway) == {"stored": 1, "failed": 1}
    upstream.refuse_completions = False
    (turn,) = await turns_of(gateway, await gateway.chat(ask(BERLIN, text="once more")))
    assert turn["shadow"] is not None


@pytest.mark.parametrize("fault", ["no_logprobs", "no_token_ids", "lost_token"])
async def test_none_where_the_tokens_are_not_known(
    upstream: ScriptedUpstream, start: Start, fault: str
) -> None:
    gateway = await start_shadowing(start)
    answer, raw = await gateway.stream(ask({**BERLIN, "fault": fault}))
    assert message_of_stream(raw)["role"] == "assistant"
    for turn in await turns_of(gateway, answer):
        assert turn["shadow"] is None
    assert await shadows_counted(gateway) in ({"unavailable": 1}, {})


async def test_a_turn_that_broke_off_has_none(upstream: ScriptedUpstream, start: Start) -> None:
    gateway = await start_shadowing(start)
    await gateway.stream(ask({**BERLIN, "fault": "cut", "at": 12}))
    await settled(gateway)
    assert completions(upstream) == []


async def test_replayed_turns_have_one_too(
    upstream: ScriptedUpstream, start: Start, folder: Path
) -> None:
    policy = policy_file(folder, defaults={"on_repeat": "replay"}, tools={"lookup": None})
    gateway = await start_shadowing(start, policy=policy)
    body = ask(BERLIN, calling("Ada", masked="Again: Berlin."), {"content": "So Berlin."})
    first = await gateway.chat(body)
    answer = await gateway.chat(follow_up(body, message_of(first), "Berlin"))
    turns = await turns_of(gateway, answer)
    assert [turn["replayed"] for turn in turns] == [False, True, False]
    said = [turn["shadow"] and turn["shadow"]["content"].strip() for turn in turns]
    assert said == ["It is Berlin.", "Again: Berlin.", None]


async def test_erased_turns_get_none(upstream: ScriptedUpstream, start: Start) -> None:
    gateway = await start_shadowing(start, shadow={"busy_turns": 1})
    async with busy(gateway, upstream):
        answer = await gateway.chat(ask(BERLIN))
        id_ = answer.headers["x-entrogate-trajectory-id"]
        assert (await gateway.client.delete(f"/v1/trajectories/{id_}")).status_code == 200
    await settled(gateway)
    error_of(await gateway.client.get(f"/v1/trajectories/{id_}"), 410)
    assert await shadows_counted(gateway) == {"unstored": 1}
