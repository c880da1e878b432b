"""Policies in force: shares of the traffic, trials that are promoted or end, orders that stay."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from entrogate.cli import command_line
from entrogate.errors import ConfigError
from entrogate.gate.policy import load_policy
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    SURE,
    UNSURE,
    ask,
    calling,
    error_of,
    eventually,
    follow_up,
    message_of,
    running,
    settings,
)
from tests.integration.policies import (
    ADMIN,
    DROPS,
    KEEPS,
    arms,
    deciders,
    put,
    text_of,
    written,
)

pytestmark = pytest.mark.both_stores


async def test_a_share_of_the_traffic(start: Start, folder: Path) -> None:
    gate = {
        "policy": written(folder / "main.yaml", "main", **KEEPS),
        "trial_policy": written(folder / "trial.yaml", "trial", **DROPS),
        "trial_share": 0.5,
    }
    gateway = await start(gate=gate)
    assert await arms(gateway) == {
        "main": ("main", 0.5, "settings"),
        "trial": ("trial", 0.5, "settings"),
    }
    seen = await deciders(gateway, 60)
    assert set(seen) == {"main", "trial"}
    # 60 draws at 1/2: fewer than 12 or more than 48 happens once in 10^6.
    assert 12 <= seen["trial"] <= 48
    for name, decision in (("main", "allow"), ("trial", "suppress")):
        calls = await gateway.metric("entrogate_policy_calls_total", policy=name, decision=decision)
        turns = await gateway.metric("entrogate_policy_turns_total", policy=name)
        assert calls == turns == seen[name]
        assert await gateway.metric("entrogate_policy_share", policy=name) == 0.5
        assert await gateway.metric("entrogate_policy_info", policy=name) == 1
    ready = (await gateway.client.get("/ready")).json()
    assert ready["policy"]["name"] == "main"
    assert (ready["trial"]["name"], ready["trial"]["share"]) == ("trial", 0.5)
    in_force = gateway.gateway.policies.in_force()
    assert [policy.name for policy in in_force] == ["main", "trial"]


async def test_a_trajectory_keeps_its_policy(start: Start, folder: Path) -> None:
    gateway = await start(policy=written(folder / "main.yaml", "main", **KEEPS))
    body = ask(
        calling("Wyllo", confidence=UNSURE),
        calling("Ellow", confidence=UNSURE),
        calling("Rain", confidence=UNSURE),
    )
    first = await gateway.chat(body)
    await put(gateway, "trial", policy=text_of("trial", **KEEPS), share=1)
    assert await deciders(gateway, 3) == {"trial": 3}

    second = await gateway.chat(follow_up(body, message_of(first), "a spirit"))
    [begun, gone_on] = (await gateway.trajectory(second))["turns"]
    assert (
        gone_on["calls"][0]["decision"]["policy_name"]
        == begun["calls"][0]["decision"]["policy_name"]
        == "main"
    )

    # It moves when its policy is in force no longer, and that is kept.
    await gateway.client.post(f"{ADMIN}/trial/promote")
    body = follow_up(body, message_of(first), "a spirit")
    third = await gateway.chat(follow_up(body, message_of(second), "another"))
    found = await gateway.trajectory(third)
    assert found["turns"][2]["calls"][0]["decision"]["policy_name"] == "trial"
    assert found["policy_changes"] == 1
    assert found["policy_version"] == gateway.gateway.policies.main.version


async def test_an_unrecorded_turn_has_the_main_policy(start: Start, folder: Path) -> None:
    gateway = await start(policy=written(folder / "main.yaml", "main", **KEEPS))
    await put(gateway, "trial", policy=text_of("trial", **DROPS), share=1)
    body = ask(calling("Wyllo", confidence=SURE), {"content": "Rain."})
    recorded = await gateway.chat(body)
    assert "tool_calls" not in message_of(recorded)
    unrecorded = await gateway.chat({**body, "store": False})
    assert message_of(unrecorded)["tool_calls"]


async def test_roll_out_and_back(start: Start, folder: Path) -> None:
    gateway = await start(policy=written(folder / "main.yaml", "main", **KEEPS))
    old = gateway.gateway.policies.main.version
    await put(gateway, "trial", policy=text_of("trial", **DROPS), share=0.25)
    assert (await arms(gateway))["trial"] == ("trial", 0.25, "order")
    await put(gateway, "trial", share=0.75)
    assert (await arms(gateway))["main"] == ("main", 0.25, "settings")
    promoted = await gateway.client.post(f"{ADMIN}/trial/promote")
    assert [each["name"] for each in promoted.json()["data"]] == ["trial"]
    assert await deciders(gateway, 3) == {"trial": 3}

    kept = (await gateway.client.get(f"{ADMIN}/versions")).json()["data"]
    assert [each["name"] for each in kept] == ["trial", "main"]
    assert [each["n_trajectories"] for each in kept] == [3, 0]
    shown = (await gateway.client.get(f"{ADMIN}/versions/{old}")).json()
    assert (shown["name"], shown["policy"]["tools"]) == ("main", {"lookup": {}})
    await put(gateway, "main", version=old)
    assert await deciders(gateway, 3) == {"main": 3}

    await put(gateway, "trial", policy=text_of("other", **DROPS), share=1)
    assert (await gateway.client.delete(f"{ADMIN}/trial")).status_code == 200
    assert await arms(gateway) == {"main": ("main", 1.0, "order")}
    audited = (await gateway.client.get("/v1/audit?limit=100")).json()["data"]
    acts = [each["action"] for each in reversed(audited) if each["action"].startswith("policy.")]
    assert acts == [
        "policy.use",
        "policy.trial",
        "policy.trial",
        "policy.promote",
        "policy.use",
        "policy.trial",
        "policy.withdraw",
    ]


async def test_bad_orders_change_nothing(start: Start, folder: Path) -> None:
    gateway = await start(policy=written(folder / "main.yaml", "main", **KEEPS))
    version = gateway.gateway.policies.main.version
    ask_for = gateway.client.request
    before = await arms(gateway)
    policy = text_of("trial", **DROPS)
    for method, path, body, status, said in (
        ("PUT", "/trial", {"policy": policy, "share": 1.5}, 400, "share"),
        ("PUT", "/trial", {"policy": policy, "share": -0.1}, 400, "share"),
        ("PUT", "/trial", {"policy": policy}, 400, "give `share`"),
        ("PUT", "/trial", {"share": 0.5}, 404, "no policy is on trial"),
        ("PUT", "/trial", {"version": version, "share": 0.5}, 409, "is already in force"),
        ("PUT", "/trial", {"version": "f00", "share": 0.5}, 404, "no policy version 'f00'"),
        ("PUT", "/main", {}, 400, "give one of"),
        ("PUT", "/main", {"version": "x", "policy": policy}, 400, "give one of"),
        ("PUT", "/main", {"policy": "name: [\n"}, 400, "policy:2:1: "),
        ("PUT", "/main", {"policy": "{schema_version: 1, name: x, thresold: 2}"}, 400, "thresold"),
        ("PUT", "/main", {"policy": "x" * 300_000}, 400, "policy"),
        ("PUT", "/main", {"policies": policy}, 400, "policies"),
        ("DELETE", "/trial", None, 404, "no policy is on trial"),
        ("POST", "/trial/promote", None, 404, "no policy is on trial"),
        ("GET", "/versions/f00", None, 404, "no policy version 'f00'"),
    ):
        answer = await ask_for(method, ADMIN + path, json=body)
        assert said in error_of(answer, status)["message"], (method, path, body)
    nan = await gateway.client.put(
        f"{ADMIN}/trial",
        content=json.dumps({"policy": policy, "share": float("nan")}),
        headers={"content-type": "application/json"},
    )
    error_of(nan, 400)
    assert await arms(gateway) == before

    await put(gateway, "trial", policy=policy, share=0.5)
    answer = await ask_for("PUT", f"{ADMIN}/main", json={"policy": policy})
    assert "promote it" in error_of(answer, 409)["message"]


async def test_orders_outlive_a_restart(
    upstream: ScriptedUpstream, folder: Path, store_url: str
) -> None:
    path = folder / "main.yaml"
    policy = written(path, "main", **KEEPS)
    chosen = settings(upstream.url, folder, policy=policy, store={"url": store_url})
    async with running(chosen) as gateway:
        await put(gateway, "main", policy=text_of("ordered", **KEEPS))
        await put(gateway, "trial", policy=text_of("trial", **DROPS), share=0.5)
        ordered = await arms(gateway)
    async with running(chosen) as gateway:
        assert await arms(gateway) == ordered
        assert ordered == {"main": ("ordered", 0.5, "order"), "trial": ("trial", 0.5, "order")}
    written(path, "newer", **KEEPS)  # said later than the order for the main policy
    async with running(chosen) as gateway:
        newer = {**ordered, "main": ("newer", 0.5, "settings")}
        assert await arms(gateway) == newer
    written(path, "main", **KEEPS)  # and what was said before it does not come back
    async with running(chosen) as gateway:
        assert await arms(gateway) == {**newer, "main": ("main", 0.5, "settings")}


async def test_replicas_follow_an_order(start: Start, folder: Path, store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("one gateway has an SQLite file")
    gate = {
        "policy": written(folder / "main.yaml", "main", **KEEPS),
        "watch_interval_seconds": 0.05,
    }
    one, two = await start(gate=gate), await start(gate=gate)
    await put(one, "trial", policy=text_of("trial", **DROPS), share=0.5)
    await eventually(lambda: len(two.gateway.policies.in_force()) == 2)
    assert await arms(two) == await arms(one)
    await two.client.post(f"{ADMIN}/trial/promote")
    await eventually(lambda: one.gateway.policies.main.name == "trial")
    await one.client.post(f"{ADMIN}/reload")
    await eventually(lambda: two.gateway.policies.main.name == "main")


async def test_the_viewer_shows_both_arms(start: Start, folder: Path) -> None:
    gateway = await start(policy=written(folder / "main.yaml", "main", **KEEPS))
    await put(gateway, "trial", policy=text_of("trial", **DROPS), share=0.5)
    seen = await deciders(gateway, 30)
    listed = (await gateway.client.get("/v1/trajectories?limit=100")).json()["data"]
    for each in listed:
        score = {"trajectory_id": each["id"], "score": float(each["n_suppressed"] == 0)}
        assert (await gateway.client.post("/v1/feedback", json=score)).status_code == 200
    shown = re.sub(r"</t[hd]><td[^>]*>", " | ", (await gateway.client.get("/ui/policy")).text)
    for arm, policy in gateway.gateway.policies.arms.items():
        n, spared, outcome = seen[policy.name], "0.0%", "1.000"
        if policy.name == "trial":
            spared, outcome = "100.0%", "0.000"
        row = rf"{arm}: {policy.name} {policy.version} \| 50% \| enforce \| {n} \| 1.00 .*? \| "
        assert re.search(rf"{row}{spared} \[.*?\] \| {n} \| {outcome} \[", shown), shown
    overview = (await gateway.client.get("/ui")).text
    for policy in gateway.gateway.policies.in_force():
        assert f'<th scope="row">{policy.name} {policy.version}</th>' in overview
    page = await gateway.client.post("/ui/policy", data={"policy": text_of("mine", **DROPS)})
    table = re.sub(r"</t[hd]><td[^>]*>", " | ", page.text)
    for label, allowed, suppressed in (("previewed", 0, 30), ("main", 30, 0), ("trial", 0, 30)):
        assert re.search(rf"{label}: \w+ \w+ \| {allowed} \| {suppressed} \| 0 \| ", table)


async def test_kept_versions_at_a_terminal(start: Start, folder: Path, store_url: str) -> None:
    path = written(folder / "main.yaml", "main", **KEEPS)
    gateway = await start(policy=path)
    await put(gateway, "main", policy=text_of("other", **DROPS))
    await deciders(gateway, 2)
    main, other = load_policy(path), gateway.gateway.policies.main

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(command_line(), ["policy", *arguments, "--store", store_url])

    listed = (await asyncio.to_thread(run, "versions")).output.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [
        [other.version, "other", "enforce"],
        [main.version, "main", "enforce"],
    ]
    assert [line.split()[-1] for line in listed[1:]] == ["2", "0"]
    as_json = json.loads((await asyncio.to_thread(run, "versions", "--json")).output)
    assert [each["version"] for each in as_json] == [other.version, main.version]
    shown = folder / "shown.yaml"
    shown.write_text((await asyncio.to_thread(run, "show", main.version)).output)
    assert load_policy(str(shown)) == main
    unknown = await asyncio.to_thread(run, "show", "f00")
    assert isinstance(unknown.exception, ConfigError)
    assert "no policy version 'f00' is stored" in str(unknown.exception)
