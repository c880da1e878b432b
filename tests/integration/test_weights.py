"""Published weights through the gateway: routed by share, stamped, rolled back, loaded again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from entrogate.cli import run
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import Running, ask, calling, error_of, events, follow_up, message_of
from tests.integration.publishing import (
    POLL,
    VERSION,
    gone,
    lora,
    publish,
    roll_back,
    share,
    table,
    version_of_new,
)

pytestmark = pytest.mark.both_stores


async def test_a_share_is_routed_stamped_and_rolled_back(
    gateway: Running, upstream: ScriptedUpstream, folder: Path
) -> None:
    assert await version_of_new(gateway) == {"base": 20}
    new = await publish(gateway, lora(folder / "one", "a"), share=0.5)
    version, name = new["version"], new["name"]
    assert name == f"scripted-{version}"
    assert upstream.adapters == {name: str(folder / "one")}

    seen = await version_of_new(gateway, 60)
    assert set(seen) == {"base", version}
    # 60 draws at 1/2: fewer than 12 or more than 48 happens once in 10^6.
    assert 12 <= seen[version] <= 48
    shares = {v: each["share"] for v, each in (await table(gateway)).items()}
    assert shares == {"base": 0.5, version: 0.5}
    assert await gateway.metric("entrogate_weight_turns_total", version=version) == seen[version]

    assert (await roll_back(gateway, version))["state"] == "draining"
    assert await version_of_new(gateway) == {"base": 20}
    await gone(gateway, version)
    assert upstream.adapters == {}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_answer_says_who_answered(gateway: Running, folder: Path, stream: bool) -> None:
    new = await publish(gateway, lora(folder / "one", "a"), share=1)
    body = ask({"content": "Hello."}, tools=False)
    if stream:
        response, raw = await gateway.stream(body, x_entrogate_debug="1")
        chunks = events(raw)
        models, last = {chunk["model"] for chunk in chunks}, chunks[-1]
    else:
        response = await gateway.chat(body, x_entrogate_debug="1")
        last = response.json()
        models = {last["model"]}
    assert models == {new["name"]}
    assert response.headers[VERSION] == new["version"]
    assert last["entrogate"]["turns"][0]["weight_version"] == new["version"]
    [turn] = (await gateway.trajectory(response))["turns"]
    assert (turn["weight_version"], turn["model"]) == (new["version"], new["name"])


async def test_a_model_that_is_named_answers_itself(
    gateway: Running, upstream: ScriptedUpstream, folder: Path
) -> None:
    new = await publish(gateway, lora(folder / "one", "a"))
    assert new["share"] == 0.0
    assert await version_of_new(gateway) == {"base": 20}
    assert await version_of_new(gateway, 3, model=new["name"]) == {new["version"]: 3}
    upstream.adapters["foreign"] = "/somewhere"
    response = await gateway.chat(ask({"content": "Hello."}, model="foreign"))
    assert VERSION not in response.headers
    [turn] = (await gateway.trajectory(response))["turns"]
    assert turn["weight_version"] == "foreign"
    missing = await gateway.chat(ask({"content": "Hello."}, model="nobody"))
    assert "does not exist" in error_of(missing, 404)["message"]


async def test_a_trajectory_stays_on_its_version(gateway: Running, folder: Path) -> None:
    """Through a promotion of another one; after a roll back it goes on with the stable one."""
    first = await publish(gateway, lora(folder / "one", "a"), share=1)
    steps = [calling("Ada"), calling("Bo"), calling("Cy"), calling("Di"), {"content": "Done."}]
    body, versions = ask(*steps), list[str]()

    async def turn() -> None:
        nonlocal body
        response = await gateway.chat(body)
        versions.append(response.headers[VERSION])
        message = message_of(response)
        if message.get("tool_calls"):
            body = follow_up(body, message, "a result")
        else:
            stored = (await gateway.trajectory(response))["turns"]
            assert [each["weight_version"] for each in stored] == versions

    await turn()
    second = await publish(gateway, lora(folder / "two", "b"), share=0.5)
    await turn()
    await share(gateway, second["version"], 1)
    assert await version_of_new(gateway) == {second["version"]: 20}
    await turn()
    await roll_back(gateway, first["version"])
    await turn()
    await roll_back(gateway, second["version"])
    await turn()
    one, two = first["version"], second["version"]
    assert versions == [one, one, one, two, "base"]


async def test_a_promotion_is_undone_by_a_roll_back(gateway: Running, folder: Path) -> None:
    first = await publish(gateway, lora(folder / "one", "a"), share=1)
    second = await publish(gateway, lora(folder / "two", "b"), share=0.25)
    found = await table(gateway)
    shares = {v: (each["share"], each["stable"]) for v, each in found.items()}
    one, two = first["version"], second["version"]
    assert shares == {"base": (0.0, False), one: (0.75, True), two: (0.25, False)}
    await share(gateway, two, 1)
    assert await version_of_new(gateway) == {two: 20}
    await roll_back(gateway, two)
    assert await version_of_new(gateway) == {one: 20}


async def test_a_restarted_gateway_goes_on_with_the_same_routing(
    start: Start, upstream: ScriptedUpstream, folder: Path, empty_postgres: str
) -> None:
    """And a second one on the same store sees what the first one changes."""
    first = await start(weights=POLL, store={"url": empty_postgres})
    old = await publish(first, lora(folder / "old", "o"), share=1)
    body = ask(calling("Ada"), {"content": "Done."})
    begun = await first.chat(body)
    new = await publish(first, lora(folder / "one", "a"))
    await share(first, new["version"], 1)
    second = await start(weights=POLL, store={"url": empty_postgres})
    assert await version_of_new(second, 5) == {new["version"]: 5}
    assert upstream.stats.paths["/v1/load_lora_adapter"] == 2
    went_on = await second.chat(follow_up(body, message_of(begun), "a result"))
    assert went_on.headers[VERSION] == begun.headers[VERSION] == old["version"]
    await roll_back(second, old["version"])
    await roll_back(second, new["version"])
    await gone(second, new["version"])
    await gone(first, new["version"])
    assert await version_of_new(first, 5) == {"base": 5}


async def test_a_restarted_vllm_gets_its_adapters_back(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    """No request fails in between: those that meet the new server first go to the base model."""
    gateway = await start(weights={"poll_interval_seconds": 60})
    new = await publish(gateway, lora(folder / "one", "a"), share=1)
    port = int(upstream.url.rsplit(":", 1)[1])
    await upstream.aclose()
    async with ScriptedUpstream() as fresh:
        await fresh.aclose()
        await fresh.start(port=port)
        assert await version_of_new(gateway, 1) == {"base": 1}
        async with asyncio.timeout(60):
            while new["name"] not in fresh.adapters or (await table(gateway))["base"]["share"]:
                await asyncio.sleep(0.01)
        assert await version_of_new(gateway, 5) == {new["version"]: 5}
        fresh.adapters.clear()
        response, raw = await gateway.stream(ask({"content": "Hello."}, tools=False))
        assert response.headers[VERSION] == "base"
        assert events(raw)[-1]["model"] == "scripted"


async def test_what_cannot_be_loaded_again_gets_no_requests(
    start: Start, upstream: ScriptedUpstream, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(weights=POLL)
    path = lora(folder / "one", "a")
    new = await publish(gateway, path, share=1)
    (folder / "one" / "adapter_model.safetensors").write_text("other weights")
    upstream.adapters.clear()
    async with asyncio.timeout(60):
        while (await table(gateway))[new["version"]]["state"] != "unavailable":
            await asyncio.sleep(0.01)
    found = (await table(gateway))[new["version"]]
    assert "holds other weights now" in found["problem"]
    assert found["share"] == 0.0
    assert "gets no requests" in caplog.text
    assert await version_of_new(gateway, 5) == {"base": 5}
    await roll_back(gateway, new["version"])
    await gone(gateway, new["version"])


async def test_what_cannot_be_published_changes_nothing(
    gateway: Running, upstream: ScriptedUpstream, folder: Path
) -> None:
    good = await publish(gateway, lora(folder / "one", "a"), share=0.5, name="taken")
    before = await table(gateway)

    async def refused(status: int, **body: Any) -> str:
        answer = await gateway.client.post("/admin/weights", json=body)
        error = error_of(answer, status)
        assert await table(gateway) == before
        assert set(upstream.adapters) == {"taken"}
        return error["message"]

    (folder / "empty").mkdir()
    assert "no adapter_config.json" in await refused(400, folder=str(folder / "empty"))
    assert "absolute" in await refused(400, folder="one")
    large = lora(folder / "large", "b", rank=64)
    assert "rank 64 is greater than max_lora_rank 16" in await refused(400, folder=large)
    other = lora(folder / "other", "c")
    assert "add up to 1.1" in await refused(400, folder=other, share=0.6)
    assert "share" in await refused(400, folder=other, share=1.5)
    assert "is taken" in await refused(409, folder=other, name="taken")
    assert "already serves" in await refused(409, folder=other, name="scripted")
    (folder / "one" / "adapter_model.safetensors").write_text("d")
    assert "a folder of its own" in await refused(409, folder=good["folder"])
    upstream.refuse_completions = True
    assert "EngineCore died" in await refused(400, folder=other)
    upstream.refuse_completions = False
    assert (await publish(gateway, other, share=0.5))["share"] == 0.5


async def test_bad_changes(gateway: Running, folder: Path) -> None:
    client = gateway.client
    one = await publish(gateway, lora(folder / "one", "a"), share=0.4)
    two = await publish(gateway, lora(folder / "two", "b"), share=0.4)
    path = f"/admin/weights/{two['version']}/share"
    assert "add up to 1.1" in error_of(await client.post(path, json={"share": 0.7}), 400)["message"]
    assert "add up to 1.4" in error_of(await client.post(path, json={"share": 1}), 400)["message"]
    error_of(await client.post(path, json={"share": -0.1}), 400)
    error_of(await client.post(path, json={}), 400)
    unknown = error_of(await client.delete("/admin/weights/nobody"), 404)
    assert one["version"] in unknown["message"]
    error_of(await client.post("/admin/weights/nobody/share", json={"share": 0}), 404)


async def test_publishing_again_only_changes_the_share(
    gateway: Running, upstream: ScriptedUpstream, folder: Path
) -> None:
    path = lora(folder / "one", "a")
    first = await publish(gateway, path, share=0.2)
    assert (await publish(gateway, path))["share"] == 0.2
    assert (await publish(gateway, path, share=0.3))["share"] == 0.3
    assert upstream.stats.paths["/v1/load_lora_adapter"] == 1
    assert list(await table(gateway)) == ["base", first["version"]]


async def test_publishers_take_turns(
    gateway: Running, upstream: ScriptedUpstream, folder: Path
) -> None:
    """Also with one and the same LoRA, which vLLM would refuse to load twice."""
    paths = [lora(folder / str(i), f"weights {i}") for i in range(4)]
    found = await asyncio.gather(*(publish(gateway, path, share=0.25) for path in paths * 2))
    assert len({each["version"] for each in found}) == 4
    assert upstream.stats.paths["/v1/load_lora_adapter"] == 4
    assert (await table(gateway))["base"]["share"] == 0.0


async def test_a_vllm_without_lora(start: Start, folder: Path) -> None:
    async with ScriptedUpstream(max_lora_rank=None) as plain:
        gateway = await start(plain.url)
        body = {"folder": lora(folder / "one", "a")}
        error = error_of(await gateway.client.post("/admin/weights", json=body), 400)
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in error["message"]
        assert list(await table(gateway)) == ["base"]


async def test_only_this_machine_may_change_weights(gateway: Running, folder: Path) -> None:
    """The server takes the client's address from a proxy on this machine."""
    path = lora(folder / "one", "a")
    for host in ("203.0.113.7", "2001:db8::1", "::ffff:203.0.113.7", "unknown"):
        headers = {"x-forwarded-for": host}
        for method, url in (
            ("GET", "/admin/weights"),
            ("POST", "/admin/weights"),
            ("POST", "/admin/weights/base/share"),
            ("DELETE", "/admin/weights/base"),
        ):
            body = {"folder": path} if method == "POST" else None
            answer = await gateway.client.request(method, url, json=body, headers=headers)
            assert error_of(answer, 403)["code"] == "admin_is_local"
    assert list(await table(gateway)) == ["base"]
    for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        answer = await gateway.client.get("/admin/weights", headers={"x-forwarded-for": host})
        assert answer.status_code == 200


async def test_commands(
    gateway: Running, upstream: ScriptedUpstream, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def entrogate(*arguments: str, code: int = 0) -> str:
        assert await asyncio.to_thread(run, [*arguments, "--gateway", gateway.url]) == code
        said = capsys.readouterr()
        return (said.err if code else said.out).strip()

    one, two = lora(folder / "one", "a"), lora(folder / "two", "b")
    assert "nothing is published" in await entrogate("rollback", code=1)
    name = await entrogate("publish", one, "--share", "0.25")
    version = name.removeprefix("scripted-")
    assert await entrogate("publish", two, "--name", "second") == "second"
    lines = (await entrogate("weights")).splitlines()
    assert lines[1].split() == ["base", "75%", "(stable)", "serving", "0", "-"]
    assert lines[2].split() == [version, "25%", "serving", "0", name]
    assert lines[3].split()[1:] == ["0%", "serving", "0", "second"]
    assert await entrogate("publish", "--promote", version) == name
    assert (await table(gateway))[version]["stable"]
    assert await entrogate("rollback") == "second", "the last one that was published"
    assert await entrogate("rollback", version) == name
    await gone(gateway, version)
    assert "published: " in await entrogate("rollback", version, code=1)
    assert "no adapter_config.json" in await entrogate("publish", str(folder), code=1)
    for wrong in ((), (one, "--promote", version), (one, "--share", "1.5")):
        assert await entrogate("publish", *wrong, code=2)


async def test_commands_where_no_gateway_is(
    upstream: ScriptedUpstream, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def error(*arguments: str) -> str:
        assert await asyncio.to_thread(run, [*arguments]) == 1
        return capsys.readouterr().err

    assert "no answer from the gateway" in await error("weights", "--gateway", "http://127.0.0.1:9")
    said = await error("weights", "--gateway", upstream.url)
    assert "is no Entrogate gateway" in said
    assert await asyncio.to_thread(run, ["publish", "x", "--vllm", "y", "--share", "1"]) == 2
