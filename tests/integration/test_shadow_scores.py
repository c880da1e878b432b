"""How right shadows are: by gold, a user's grader or agreement, whichever comes when."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from entrogate.errors import ConfigError, GraderError
from entrogate.serve.graders import MOST_HANGING, load_grader
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration import graders_of_tests
from tests.integration.conftest import Start
from tests.integration.harness import Running, ask, calling, follow_up, message_of
from tests.integration.shadowed import busy, settled, start_shadowing, turns_of

GRADERS = graders_of_tests.__name__


async def agent(
    gateway: Running, masked: str = "Berlin", final: str = "Paris", text: str = "Which town?"
) -> tuple[str, httpx.Response]:
    """A call, its result and an answer: the trajectory's id, and the last response."""
    body = ask(calling("Ada", masked=masked), {"content": final}, text=text)
    first = await gateway.chat(body)
    last = await gateway.chat(follow_up(body, message_of(first), "She lives there."))
    return last.headers["x-entrogate-trajectory-id"], last


async def tell(gateway: Running, **feedback: Any) -> dict[str, Any]:
    answer = await gateway.client.post("/v1/feedback", json=feedback)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"id", "trajectory_id", "score", "rewards"}
    return answer.json()


async def scored(gateway: Running, response: httpx.Response) -> tuple[float | None, str | None]:
    shadow = (await turns_of(gateway, response))[0]["shadow"]
    assert (shadow["score"] is None) == (shadow["judged_at"] is None)
    return shadow["score"], shadow["judged_by"]


@pytest.mark.parametrize(
    ("masked", "feedback", "wanted"),
    [
        ("Oslo", {"answer": "Paris", "gold": ["Oslo", "Christiania"]}, (1.0, "gold")),
        ("in Oslo now", {"answer": "Paris", "gold": "Oslo"}, (0.5, "gold")),
        ("Rome", {"answer": "Paris", "gold": "Oslo"}, (0.0, "gold")),
        ("paris.", {"score": 0.5}, (1.0, "agreement")),
        ("Rome", {"score": 1}, (0.0, "agreement")),
        ("Paris", {"score": 0.4}, (None, None)),
        ('{"name": "lookup", "arguments": {}}', {"score": 0.4}, (0.0, "agreement")),
        ('{"name": "lookup", "arguments": {}}', {"answer": "a", "gold": "name"}, (0.0, "gold")),
    ],
)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.both_stores
async def test_scores(
    upstream: ScriptedUpstream,
    start: Start,
    masked: str,
    feedback: dict[str, Any],
    wanted: tuple[float | None, str | None],
    late: bool,
) -> None:
    """The same, whether the shadow or the feedback comes first."""
    gateway = await start_shadowing(start, shadow={"busy_turns": 1})
    if late:
        async with busy(gateway, upstream):
            trajectory_id, last = await agent(gateway, masked)
            await tell(gateway, trajectory_id=trajectory_id, **feedback)
    else:
        trajectory_id, last = await agent(gateway, masked)
        await settled(gateway)
        await tell(gateway, trajectory_id=trajectory_id, **feedback)
    assert await scored(gateway, last) == wanted
    counted = await gateway.metric("entrogate_shadow_scores_total")
    assert counted == (wanted[0] is not None)


async def test_the_answer_is_taken_out_of_both_texts_alike(start: Start) -> None:
    gateway = await start_shadowing(start)
    id_, last = await agent(gateway, "I guess the answer is Oslo.", "Now the answer is Paris.")
    await settled(gateway)
    await tell(gateway, trajectory_id=id_, answer="Paris", gold="Oslo")
    score, _ = await scored(gateway, last)
    assert score is not None
    assert score < 0.5  # "Now the answer is" does not stand there
    id_, last = await agent(gateway, "The answer is Oslo.", "The answer is Paris.", text="Again?")
    await settled(gateway)
    await tell(gateway, trajectory_id=id_, answer="Paris", gold="Oslo")
    assert await scored(gateway, last) == (1.0, "gold")


async def test_later_outcomes_score_again_and_gold_stays(start: Start) -> None:
    gateway = await start_shadowing(start)
    id_, last = await agent(gateway, masked="Paris")
    await settled(gateway)
    await tell(gateway, trajectory_id=id_, score=0.2)
    assert await scored(gateway, last) == (None, None)
    await tell(gateway, trajectory_id=id_, score=0.9)
    assert await scored(gateway, last) == (1.0, "agreement")
    await tell(gateway, trajectory_id=id_, score=0.1)
    assert await scored(gateway, last) == (None, None)
    await tell(gateway, trajectory_id=id_, answer="Paris", gold="Rome")
    assert await scored(gateway, last) == (0.0, "gold")
    await tell(gateway, trajectory_id=id_, score=1)
    assert await scored(gateway, last) == (0.0, "gold")


async def test_feedback_on_an_answer_speaks_of_the_turns_before_it(start: Start) -> None:
    gateway = await start_shadowing(start)
    body = ask(
        calling("Ada", masked="Paris"), {"content": "Paris"}, calling("Bob"), {"content": "Rome"}
    )
    first = await gateway.chat(body)
    body = follow_up(body, message_of(first), "…")
    answer = await gateway.chat(body)
    message = message_of(answer)
    again = {**body, "messages": [*body["messages"], message, {"role": "user", "content": "And?"}]}
    last = await gateway.chat(again)
    turns = await turns_of(gateway, last)
    assert [turn["shadow"] is not None for turn in turns] == [True, False, True]
    await tell(gateway, response_id=answer.json()["id"], score=1)
    turns = await turns_of(gateway, last)
    assert [turn["shadow"] and turn["shadow"]["score"] for turn in turns] == [1.0, None, None]
    last = await gateway.chat(follow_up(again, message_of(last), "…"))
    await tell(gateway, tool_call_id=turns[2]["calls"][0]["id"], score=1)
    turns = await turns_of(gateway, last)
    assert [turn["shadow"] and turn["shadow"]["score"] for turn in turns] == [0.0, None, 0.0, None]


@pytest.mark.parametrize("named", ["says_berlin", "in_its_own_loop"])
async def test_a_function_grades_where_there_is_no_gold(start: Start, named: str) -> None:
    gateway = await start_shadowing(start, shadow={"grader": f"{GRADERS}:{named}"})
    id_, last = await agent(gateway, masked="Berlin")
    await tell(gateway, trajectory_id=id_, score=0.1)
    assert await scored(gateway, last) == (1.0, "grader")
    await tell(gateway, trajectory_id=id_, answer="Paris", gold="Paris")
    assert await scored(gateway, last) == (0.0, "gold")
    await tell(gateway, trajectory_id=id_, score=1)
    assert await scored(gateway, last) == (0.0, "gold")
    assert await gateway.metric("entrogate_shadow_scores_total", judged_by="grader") == 1


async def test_what_a_grader_is_told(start: Start) -> None:
    graders_of_tests.seen.clear()
    gateway = await start_shadowing(start, shadow={"grader": f"{GRADERS}:keeps"})
    body = ask(calling("Ada", masked="Berlin"), {"content": "Paris"}, metadata={"user": "7"})
    first = await gateway.chat(body, x_entrogate_task_id="task-7")
    last = await gateway.chat(follow_up(body, message_of(first), "…"))
    id_ = last.headers["x-entrogate-trajectory-id"]
    await settled(gateway)
    assert graders_of_tests.seen == []  # no outcome yet
    await tell(gateway, trajectory_id=id_, score=0.25)
    assert await scored(gateway, last) == (0.75, "grader")
    (asked,) = graders_of_tests.seen
    turn = (await turns_of(gateway, last))[0]
    assert asked == {
        "schema_version": 1,
        "trajectory_id": id_,
        "turn_id": turn["id"],
        "task_id": "task-7",
        "model": "scripted",
        "metadata": {"user": "7"},
        "messages": body["messages"],
        "calls": [{"name": "lookup", "arguments": turn["calls"][0]["arguments"]}],
        "answer": turn["shadow"]["content"],
        "final": "Paris",
        "outcome": 0.25,
    }


async def test_a_shadow_that_comes_has_no_other_graded_again(start: Start) -> None:
    """Else the grader is asked as often as the square of the turns."""
    graders_of_tests.seen.clear()
    gateway = await start_shadowing(start, shadow={"grader": f"{GRADERS}:keeps"})
    steps = [calling(name, masked="Berlin") for name in ("Ada", "Bob", "Cleo")]
    body = ask(*steps, {"content": "Paris"})
    last = await gateway.chat(body)
    await settled(gateway)
    await tell(gateway, trajectory_id=last.headers["x-entrogate-trajectory-id"], score=1)
    for asked in range(1, 4):
        await settled(gateway)
        assert len(graders_of_tests.seen) == asked
        body = follow_up(body, message_of(last), "…")
        last = await gateway.chat(body)
    await tell(gateway, trajectory_id=last.headers["x-entrogate-trajectory-id"], score=0.5)
    await settled(gateway)
    assert len(graders_of_tests.seen) == 6  # another outcome: all of them


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("raises", "raised"),
        ("leaves", "raised"),
        ("too_much", "invalid"),
        ("no_number", "invalid"),
        ("a_word", "invalid"),
        ("enormous", "invalid"),
        ("hangs", "timeout"),
    ],
)
async def test_a_grader_that_fails_leaves_agreement(start: Start, named: str, kind: str) -> None:
    seconds = 0.2 if kind == "timeout" else 20
    shadow = {"grader": f"{GRADERS}:{named}", "grader_timeout_seconds": seconds}
    gateway = await start_shadowing(start, shadow=shadow)
    id_, last = await agent(gateway, masked="Paris")
    await tell(gateway, trajectory_id=id_, score=1)
    assert await scored(gateway, last) == (1.0, "agreement")
    assert await gateway.metric("entrogate_grader_failures_total", kind=kind) >= 1
    assert (await gateway.chat(ask({"content": "Still here."}))).status_code == 200


async def test_a_function_that_keeps_hanging_is_left_alone() -> None:
    grader = load_grader(f"{GRADERS}:hangs", timeout_seconds=0.05)
    kinds: list[str] = []
    async with grader:
        for _ in range(MOST_HANGING + 1):
            with pytest.raises(GraderError) as caught:
                await grader.score({})
            kinds.append(caught.value.kind)
        assert kinds == [*["timeout"] * MOST_HANGING, "hanging"]
        async with asyncio.timeout(60):  # once they have ended it is called again
            while True:
                with pytest.raises(GraderError) as caught:
                    await grader.score({})
                if caught.value.kind == "timeout":
                    break
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no_such_module_at_all:f", "No module named"),
        (f"{GRADERS}:no_such_function", "no_such_function"),
        (f"{GRADERS}:not_a_function", "want a function"),
    ],
)
def test_a_grader_that_is_not_there_is_told_at_the_start(named: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_grader(named, timeout_seconds=1)


Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def hook(answer: Answering) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/grade", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/grade"
    finally:
        await runner.cleanup()


async def test_a_hook_grades(start: Start) -> None:
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"score": 0.25, "why": "because"})

    async with hook(answer) as url:
        gateway = await start_shadowing(start, shadow={"grader": url})
        id_, last = await agent(gateway)
        await tell(gateway, trajectory_id=id_, score=1)
        assert await scored(gateway, last) == (0.25, "grader")
    assert asked[0]["answer"].strip() == "Berlin"
    assert asked[0]["trajectory_id"] == id_


async def test_gold_that_comes_while_the_grader_thinks_stays(start: Start) -> None:
    thinking, told = asyncio.Event(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        thinking.set()
        await told.wait()
        return web.json_response({"score": 1})

    async with hook(answer) as url:
        gateway = await start_shadowing(start, shadow={"grader": url})
        id_, last = await agent(gateway, masked="Berlin")
        await tell(gateway, trajectory_id=id_, score=1)
        await thinking.wait()
        await tell(gateway, trajectory_id=id_, answer="Paris", gold="Paris")
        told.set()
        assert await scored(gateway, last) == (0.0, "gold")


def _responding(status: int, body: bytes, **headers: str) -> Answering:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return answer


async def _silent(_: web.Request) -> web.Response:
    await asyncio.sleep(5)
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_responding(500, b"{}"), "raised"),
        (_responding(302, b"", location="http://127.0.0.1:1/"), "raised"),
        (_responding(200, b"<html>"), "invalid"),
        (_responding(200, b"[0.5]"), "invalid"),
        (_responding(200, b"{}"), "invalid"),
        (_responding(200, b'{"score": "1"}'), "invalid"),
        (_responding(200, b'{"score": -1}'), "invalid"),
        (_responding(200, b'{"score": 1e999}'), "invalid"),
        (_responding(200, json.dumps({"score": 1, "why": "x" * 2**17}).encode()), "invalid"),
        (_silent, "timeout"),
    ],
)
async def test_a_hook_that_fails(answer: Answering, kind: str) -> None:
    seconds = 0.5 if kind == "timeout" else 20
    async with hook(answer) as url, load_grader(url, timeout_seconds=seconds) as grader:
        with pytest.raises(GraderError) as caught:
            await grader.score({"answer": "Berlin"})
        assert caught.value.kind == kind
        assert "\n" not in str(caught.value)


async def test_a_hook_that_is_not_there() -> None:
    async with load_grader("http://127.0.0.1:1/", timeout_seconds=20) as grader:
        with pytest.raises(GraderError) as caught:
            await grader.score({})
    assert caught.value.kind == "unavailable"


def test_a_grader_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grading_of_this_folder.py").write_text("def score(asked):\n    return 1.0\n")
    elsewhere = [each for each in sys.path if each not in ("", str(Path.cwd()))]
    monkeypatch.setattr(sys, "path", [*elsewhere])
    monkeypatch.chdir(tmp_path)

    load_grader("grading_of_this_folder:score", timeout_seconds=1)

    assert sys.path == [*elsewhere, str(tmp_path)]
