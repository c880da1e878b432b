"""The audit and the fuse before a whole gateway: real turns, their shadows, outcomes by gold."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate.gate.policy import load_policy
from entrogate.observe.metrics import Metrics
from entrogate.serve.fuses import Fuses
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.read.replay import replay_store
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    TOOLS,
    Running,
    ask,
    calling,
    eventually,
    follow_up,
    message_of,
    policy_file,
    running,
    settings,
)
from tests.integration.keyed import KEYS, Keys
from tests.integration.shadowed import settled

AUDIT = {"share": 0.5, "max_loss": 0.05, "delta": 0.1}
POLICY: dict[str, Any] = {
    "defaults": {"threshold": 9.0},  # every call is suppressed
    "tools": {"lookup": None, "search": None},
    "audit": AUDIT,
}
FAST = {"fuse_interval_seconds": 0.02}
RIGHT, WRONG = "Paris.", "Berlin."  # what the model says without the call
LIMIT = 200  # of trajectories: the chance not to blow by then is nil


async def begin(start: Start, folder: Path, **options: Any) -> Running:
    policy = options.pop("policy", None) or policy_file(folder, **POLICY)
    gate = FAST | options.pop("gate", {})
    return await start(policy=policy, gate={"policy": policy} | gate, **options)


async def trajectory(
    gateway: Running, without: str, *, name: str = "lookup", judged: bool = True
) -> dict[str, Any]:
    """One conversation with its outcome; the decision on its call, and how it ended."""
    body = ask(calling("Ada", name=name, masked=without), {"content": "Paris."})
    answer = await gateway.chat(body)
    message = message_of(answer)
    if "tool_calls" in message:
        answer = await gateway.chat(follow_up(body, message, "Paris"))
        message = message_of(answer)
    said = str(message["content"]).strip()
    id_ = answer.headers["x-entrogate-trajectory-id"]
    if judged:
        outcome = {"trajectory_id": id_, "answer": said, "gold": "Paris"}
        told = await gateway.client.post("/v1/feedback", json=outcome)
        assert told.status_code == 200, told.text
    found = (await gateway.client.get(f"/v1/trajectories/{id_}")).json()
    return {"id": id_, "said": said, **found["turns"][0]["calls"][0]["decision"]}


async def fuses(gateway: Running) -> dict[str, dict[str, Any]]:
    answer = await gateway.client.get("/admin/fuses")
    assert answer.status_code == 200, answer.text
    return {each["tool"]: each for each in answer.json()["data"]}


async def blow(gateway: Running, without: str = WRONG) -> dict[str, Any]:
    """Trajectories until the fuse of `lookup` blows."""
    for _ in range(LIMIT):
        await trajectory(gateway, without)
        await settled(gateway)
        found = (await fuses(gateway))["lookup"]
        if found["state"] == "blown":
            return found
    raise AssertionError("the fuse does not blow")


async def test_a_shifted_world_blows_the_fuse(
    start: Start, upstream: ScriptedUpstream, folder: Path, store_url: str
) -> None:
    gateway = await begin(start, folder)
    for _ in range(20):  # the policy is right: nothing is lost without the call
        await trajectory(gateway, RIGHT)
    await settled(gateway)
    before = (await fuses(gateway))["lookup"]
    assert (before["state"], before["losses"], before["waiting"]) == ("armed", 0, 0)
    assert 0 < before["audits"] < 20
    assert before["lower"] == 0.0 < before["upper"] < 1.0
    blown = await blow(gateway)
    assert blown["lower"] > AUDIT["max_loss"]
    assert blown["losses"] >= 2
    assert blown["audits"] > before["audits"]
    for _ in range(10):
        after = await trajectory(gateway, WRONG)
        assert (after["mode"], after["action"], after["applied"]) == (
            "observe",
            "suppress",
            "allow",
        )
        assert (after["propensity"], after["said"]) == (1.0, "Paris.")
    # what the tools in use show of it
    labels = {"policy": "test", "tool": "lookup"}
    assert await gateway.metric("entrogate_fuse_blown", **labels) == 1
    assert await gateway.metric("entrogate_fuse_blown", policy="test", tool="search") == 0
    assert await gateway.metric("entrogate_fuse_losses", **labels) == blown["losses"]
    assert await gateway.metric("entrogate_fuse_audits", **labels) == blown["audits"]
    assert await gateway.metric("entrogate_fuse_loss_rate_lower", **labels) == blown["lower"]
    assert await gateway.metric("entrogate_fuse_max_loss", **labels) == AUDIT["max_loss"]
    overview = (await gateway.client.get("/ui")).text
    assert '<li class="problem"><strong>lookup</strong> blown: its calls are only obs' in overview
    assert f"{blown['losses']} of {blown['audits']} audits were losses" in overview
    assert "<li><strong>search</strong> armed (policy test" in overview
    entries = (await gateway.client.get("/v1/audit?action=fuse.blow")).json()["data"]
    assert [(entry["actor"], entry["target"]) for entry in entries] == [("gateway", "lookup")]
    assert entries[0]["detail"]["losses"] == blown["losses"]
    # decisions before, while and after it blew replay
    store = await asyncio.to_thread(
        Store.open, StoreSettings.model_validate({"url": store_url}), read_only=True
    )
    report = await asyncio.to_thread(replay_store, store, None)
    assert report.calls > 30
    assert report.mismatches == 0, report.examples
    await asyncio.to_thread(store.close)


async def test_an_audited_call_is_stored_as_one(start: Start, folder: Path) -> None:
    """Suppressed by the policy, let through, with its probability, and with a shadow."""
    gateway = await begin(start, folder)
    seen = [await trajectory(gateway, RIGHT) for _ in range(40)]
    audited = [each for each in seen if each["applied"] == "allow"]
    assert 5 < len(audited) < 35
    for each in seen:
        assert (each["mode"], each["action"], each["reason"]) == ("enforce", "suppress", "certain")
        assert each["propensity"] == 0.5
    await settled(gateway)
    for each in audited:
        found = (await gateway.client.get(f"/v1/trajectories/{each['id']}")).json()
        shadow = found["turns"][0]["shadow"]
        assert (shadow["purpose"], shadow["score"], shadow["judged_by"]) == ("audit", 1.0, "gold")
    assert (await fuses(gateway))["lookup"]["audits"] == len(audited)


@pytest.mark.parametrize("restarted", [False, True])
async def test_after_an_audited_call_a_trajectory_is_only_observed(
    upstream: ScriptedUpstream, folder: Path, store_url: str, restarted: bool
) -> None:
    """As the trajectories that a promise is made of; the gate going on would mend some of them."""
    policy = policy_file(folder, **POLICY | {"audit": AUDIT | {"share": 0.8}})
    options: dict[str, Any] = {"gate": {"policy": policy, **FAST}, "store": {"url": store_url}}
    own = settings(upstream.url, folder, policy=policy, **options)
    body = ask(calling("Ada", masked=RIGHT), calling("Bob", masked=RIGHT), {"content": "Paris."})

    async def begun(gateway: Running) -> list[dict[str, Any]]:
        messages = [message_of(await gateway.chat(body)) for _ in range(8)]
        return [message for message in messages if "tool_calls" in message]  # the audited ones

    async def continued(gateway: Running, message: dict[str, Any]) -> None:
        answer = await gateway.chat(follow_up(body, message, "Paris"))
        assert message_of(answer)["tool_calls"]
        id_ = answer.headers["x-entrogate-trajectory-id"]
        turns = (await gateway.client.get(f"/v1/trajectories/{id_}")).json()["turns"]
        modes = [turn["calls"][0]["decision"]["mode"] for turn in turns]
        assert modes == ["enforce", "observe"]

    async with running(own) as first:
        audited = await begun(first)
        assert audited  # each with probability 0.8
        for message in [] if restarted else audited:
            await continued(first, message)
        assert (await trajectory(first, RIGHT))["mode"] == "enforce"  # another one
    async with running(own) as second:
        for message in audited if restarted else []:
            await continued(second, message)


async def test_a_blown_fuse_outlives_the_gateway(
    upstream: ScriptedUpstream, start: Start, folder: Path, store_url: str
) -> None:
    policy = policy_file(folder, **POLICY)
    options: dict[str, Any] = {"gate": {"policy": policy, **FAST}, "store": {"url": store_url}}
    async with running(settings(upstream.url, folder, policy=policy, **options)) as first:
        await blow(first)
    async with running(settings(upstream.url, folder, policy=policy, **options)) as second:
        assert (await trajectory(second, WRONG, judged=False))["mode"] == "observe"
        assert (await trajectory(second, WRONG, name="search"))["mode"] == "enforce"


async def test_all_replicas_follow(start: Start, folder: Path, postgres_url: str) -> None:
    """The second gateway sees no traffic before the fuse is blown, and arms it for both."""
    store = {"url": postgres_url}
    first = await begin(start, folder, store=store)
    second = await begin(start, folder, store=store)
    await blow(first)
    await eventually(lambda: second.gateway.fuses.standings[0].fuse.state == "blown")
    assert (await trajectory(second, WRONG))["mode"] == "observe"
    entries = (await first.client.get("/v1/audit?action=fuse.blow")).json()["data"]
    assert len(entries) == 1  # both saw it, one noted it
    assert (await second.client.post("/admin/fuses/lookup/arm")).status_code == 200
    await eventually(lambda: first.gateway.fuses.standings[0].fuse.state == "armed")
    assert (await trajectory(first, RIGHT))["mode"] == "enforce"


async def test_arming_again(start: Start, folder: Path) -> None:
    gateway = await begin(start, folder)
    blown = await blow(gateway)
    path = "/admin/fuses/lookup/arm"
    answer = await gateway.client.post(path, params={"policy_version": blown["policy_version"]})
    (armed,) = answer.json()["data"]
    assert (armed["state"], armed["audits"], armed["losses"]) == ("armed", 0, 0)
    assert armed["lower"] is armed["upper"] is armed["loss_rate"] is None
    assert (await trajectory(gateway, RIGHT))["mode"] == "enforce"
    assert (await fuses(gateway))["lookup"]["losses"] == 0  # those from before do not come back
    (entry,) = (await gateway.client.get("/v1/audit?action=fuse.arm")).json()["data"]
    assert (entry["target"], entry["detail"]["policy"]) == ("lookup", "test")
    assert (await blow(gateway))["losses"] >= 2  # it watches on


async def test_an_outcome_that_comes_late_does_not_count_for_a_fuse_armed_since(
    start: Start, folder: Path
) -> None:
    gateway = await begin(start, folder)
    late = [await trajectory(gateway, WRONG, judged=False) for _ in range(30)]
    await settled(gateway)
    waiting = (await fuses(gateway))["lookup"]["waiting"]
    assert waiting == sum(each["applied"] == "allow" for each in late) > 0
    await gateway.client.post("/admin/fuses/lookup/arm")
    for each in late:
        outcome = {"trajectory_id": each["id"], "answer": each["said"], "gold": "Paris"}
        await gateway.client.post("/v1/feedback", json=outcome)
    found = (await fuses(gateway))["lookup"]
    assert (found["state"], found["audits"], found["waiting"]) == ("armed", 0, 0)


async def test_a_version_keeps_its_fuse_while_another_is_in_force(
    start: Start, folder: Path
) -> None:
    gateway = await begin(start, folder, gate={"fuse_interval_seconds": 600.0})
    await blow(gateway)
    other = {**POLICY, "defaults": {"threshold": 8.0}}
    for content, mode in ((other, "enforce"), (POLICY, "observe"), (other, "enforce")):
        text = Path(policy_file(folder, **content)).read_text()
        told = await gateway.client.put("/admin/policies/main", json={"policy": text})
        assert told.status_code == 200, told.text
        standings = gateway.gateway.fuses  # woken by the change, long before the next round
        await eventually(lambda s=standings: len(s.standings) == 2)
        assert (await trajectory(gateway, RIGHT, judged=False))["mode"] == mode


async def test_a_turn_that_touches_the_tool_is_observed_as_a_whole(
    start: Start, folder: Path
) -> None:
    gateway = await begin(start, folder)
    await blow(gateway)
    both = calling("Ada")
    both["calls"].append({"name": "search", "arguments": {"entity": "Ada"}})
    answer = await gateway.chat(ask(both))
    (turn,) = (await gateway.trajectory(answer))["turns"]
    assert [call["decision"]["mode"] for call in turn["calls"]] == ["observe", "observe"]
    assert len(message_of(answer)["tool_calls"]) == 2
    other = [await trajectory(gateway, RIGHT, name="search") for _ in range(12)]
    assert {each["mode"] for each in other} == {"enforce"}
    assert {each["applied"] for each in other} == {"suppress", "allow"}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_engine_follows(start: Start, folder: Path, stream: bool) -> None:
    """It masks no call that is audited, and none at all once a fuse is blown."""
    async with ScriptedUpstream(engine=True) as upstream:
        capture = {"capture": upstream.captures}
        gateway = await begin(start, folder, url=upstream.url, upstream=capture)

        async def turn() -> tuple[dict[str, Any], bool]:
            body = ask(calling("Ada", masked=WRONG)) | {"tools": TOOLS[:2]}  # both are gated
            await settled(gateway)
            n_bodies = len(upstream.stats.bodies)
            answer = (await gateway.stream(body))[0] if stream else await gateway.chat(body)
            sent = json.loads(upstream.stats.bodies[n_bodies])
            (found,) = (await gateway.trajectory(answer))["turns"]
            return found, "entrogate_gate" in sent.get("vllm_xargs", {})

        seen = [await turn() for _ in range(30)]
        for found, gated in seen:
            decision = found["calls"][0]["decision"]
            assert decision["action"] == "suppress"
            assert (decision["applied"] == "suppress") is gated
            assert (found["calls"][0]["name"] == "(unsampled)") is gated
            assert decision["propensity"] == 0.5
        assert {gated for _, gated in seen} == {True, False}
        await blow(gateway)
        after = [await turn() for _ in range(8)]
        assert not any(gated for _, gated in after)
        assert {found["calls"][0]["decision"]["mode"] for found, _ in after} == {"observe"}


async def test_a_store_that_fails_breaks_no_turn(
    start: Start, folder: Path, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await begin(start, folder)
    await blow(gateway)

    def drop() -> None:
        store = Store.open(StoreSettings.model_validate({"url": store_url}))
        with store._database.writer.begin() as connection:  # pyright: ignore
            connection.exec_driver_sql("ALTER TABLE fuses RENAME TO gone")
        store.close()

    await asyncio.to_thread(drop)
    await eventually(lambda: "fuses.not_refreshed" in caplog.text)
    found = await trajectory(gateway, WRONG)  # what is known stays in force
    assert (found["mode"], found["applied"]) == ("observe", "allow")
    assert (await trajectory(gateway, RIGHT, name="search"))["mode"] == "enforce"
    assert caplog.text.count("fuses.not_refreshed") == 1  # it is said once


async def test_what_is_not_known_yet_is_observed(folder: Path) -> None:
    policy = load_policy(policy_file(folder, **POLICY))
    store = await asyncio.to_thread(
        Store.open, StoreSettings.model_validate({"url": f"sqlite:///{folder / 'a.db'}"})
    )
    fuses = Fuses(
        records=store.fuses,
        policies=lambda: (policy,),
        metrics=Metrics().fuses,
        interval_seconds=1.0,
    )
    assert fuses.blown(policy) == {"lookup", "search"}
    await store.start()
    await fuses.refresh()
    assert fuses.blown(policy) == frozenset()
    assert fuses.blown(load_policy("observe")) == frozenset()
    await store.aclose()


@pytest.mark.parametrize(
    "path", ["/admin/fuses/send_mail/arm", "/admin/fuses/nothing/arm", "/admin/fuses/a%2Fb/arm"]
)
async def test_only_audited_tools_have_a_fuse(start: Start, folder: Path, path: str) -> None:
    gateway = await begin(start, folder)
    answer = await gateway.client.post(path)
    assert answer.status_code == 404
    assert "no fuse of tool" in answer.json()["error"]["message"]
    other = {"policy_version": "0000000000000000"}
    answer = await gateway.client.post("/admin/fuses/lookup/arm", params=other)
    assert answer.status_code == 404
    assert "0000000000000000" in answer.json()["error"]["message"]


async def test_a_policy_without_an_audit_has_no_fuses(start: Start) -> None:
    gateway = await start(policy="balanced")
    assert await fuses(gateway) == {}
    assert (await gateway.client.post("/admin/fuses/lookup/arm")).status_code == 404


async def test_fuses_are_for_admins(start: Start, folder: Path, store_url: str) -> None:
    gateway = await begin(start, folder, access=KEYS)
    keys = Keys(gateway, store_url)
    reader, admin = await keys.make("read", "infer"), await keys.make("admin")

    async def asked(method: str, path: str, key: str | None) -> int:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return (await gateway.client.request(method, path, headers=headers)).status_code

    for method, path in (("GET", "/admin/fuses"), ("POST", "/admin/fuses/lookup/arm")):
        assert await asked(method, path, None) == 401
        assert await asked(method, path, reader) == 403
        assert await asked(method, path, admin) == 200
    key = httpx.Headers({"authorization": f"Bearer {admin}"})
    (entry,) = (await gateway.client.get("/v1/audit?action=fuse.arm", headers=key)).json()["data"]
    assert entry["actor"].startswith("key_")
