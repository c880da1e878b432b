"""Keys, scopes and tenants on the running gateway, every route with every key."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.routing import Mount, Route

from entrogate.access import Scope, qualified
from entrogate.serve.access import SCOPES, check_routes
from entrogate.store.admin.keys_cli import keys as keys_command
from entrogate.store.read.cli import trajectories as trajectories_command
from tests.integration.conftest import Start
from tests.integration.doors import MESSAGES, RESPONSES, ask_messages, ask_responses
from tests.integration.harness import (
    CHAT,
    METRICS_TOKEN,
    Running,
    ask,
    calling,
    follow_up,
    message_of,
)
from tests.integration.keyed import KEYS, Keys, bearer, gateway, keys, run

__all__ = ["gateway", "keys"]
pytestmark = pytest.mark.both_stores


FORGED = "eg_" + "A" * 43


# -- who may ask for what -------------------------------------------------------------------------


def asked(gateway: Running) -> list[tuple[str, str]]:
    """Method and path of every route of the running app, with something in its parameters."""
    found: list[tuple[str, str]] = []
    for route in gateway.app.routes:
        assert isinstance(route, Route)
        path = re.sub(r"{\w+(?::\w+)?}", "traj_none", route.path)
        methods = (route.methods or {"GET"}) - {"HEAD"}
        found += [(method, path) for method in sorted(methods)]
    for path in ("/ui/login", "/ui/logout"):  # they answer by themselves: test_viewer.py
        found.remove(("POST", path))
    return found


async def test_every_route_with_every_scope(gateway: Running, keys: Keys) -> None:
    """Only the keys whose scope a route names, and admins', get beyond the door."""
    secrets = {scope: await keys.make(scope.value) for scope in Scope}
    revoked, expired = await keys.make("admin"), await keys.make("admin", expires="1h")
    await keys.revoke(revoked)
    await keys.expire(expired)
    for method, path in asked(gateway):
        needed = next(
            SCOPES[pattern]
            for asked_for in (f"{method} {path}", path)
            for pattern in SCOPES
            if re.fullmatch(re.sub(r"{\w+(:\w+)?}", "[^/]+", pattern), asked_for)
        )
        for refused in (
            {},
            *map(bearer, ("none", FORGED, revoked, expired)),
            {"x-api-key": "x"},
            {"x-api-key": expired},
            {"authorization": f"Basic {secrets[Scope.ADMIN]}"},
            {"cookie": f"entrogate_session={secrets[Scope.ADMIN]}"},
        ):
            answer = await gateway.client.request(method, path, headers=refused)
            shut = 303 if path.startswith("/ui") else 401  # a browser is led to the login
            assert (answer.status_code == shut) == (needed is not None), (method, path, refused)
            if needed is not None and shut == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["type"] == "authentication_error"
        for scope, secret in secrets.items():
            answer = await gateway.client.request(method, path, headers=bearer(secret))
            allowed = needed is None or scope in (needed, Scope.ADMIN)
            assert (answer.status_code not in (303, 401, 403)) == allowed, (method, path, scope)
            if not allowed:
                error = answer.json()["error"]
                assert error["type"] == "permission_error"
                assert f"'{needed}'" in error["message"]
            assert answer.status_code < 500 or answer.status_code in (502, 503), (method, path)


def test_a_route_without_a_scope_keeps_the_gateway_from_starting() -> None:
    with pytest.raises(LookupError, match="'/v1/new'"):
        check_routes([Route("/v1/new", lambda _: None)])


def test_routes_that_cannot_be_checked_one_by_one_keep_it_from_starting() -> None:
    """A mounted app, as FastAPI 0.137 and later hold an included router."""
    with pytest.raises(TypeError, match="one by one"):
        check_routes([Mount("/ui", routes=[Route("/hidden", lambda _: None)])])


async def test_keys_count_within_seconds_and_nobody_slips_through(
    gateway: Running, keys: Keys
) -> None:
    body = ask({"content": "Hello."}, tools=False)
    assert (await gateway.chat(body)).status_code == 200  # no key was ever made
    secret = await keys.make("infer")
    assert (await gateway.chat(body)).status_code == 401
    assert (await gateway.chat(body, authorization=f"Bearer {secret}")).status_code == 200
    assert (await gateway.chat(body, x_api_key=secret)).status_code == 200
    await keys.revoke(secret)
    answer = await gateway.chat(body, authorization=f"Bearer {secret}")
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert (await gateway.chat(body)).status_code == 401  # revoking the last one opens nothing
    assert await gateway.metric("entrogate_requests_refused_total", reason="missing_api_key") >= 2


async def test_a_key_expires(gateway: Running, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = await keys.make("infer", expires="1h")
    body = ask({"content": "Hello."}, tools=False)
    assert (await gateway.chat(body, authorization=f"Bearer {secret}")).status_code == 200
    now = time.time()
    monkeypatch.setattr("entrogate.serve.keyring.time.time", lambda: now + 3601)
    assert (await gateway.chat(body, authorization=f"Bearer {secret}")).status_code == 401


async def test_a_static_key_has_every_scope(start: Start) -> None:
    gateway = await start(access={**KEYS, "key": "a-static-secret-1"})
    assert (await gateway.client.get("/v1/trajectories")).status_code == 401
    headers = bearer("a-static-secret-1")
    assert (await gateway.client.get("/v1/trajectories", headers=headers)).status_code == 200
    assert (await gateway.client.get("/admin/weights", headers=headers)).status_code == 200


async def test_errors_are_said_as_the_api_says_them(gateway: Running, keys: Keys) -> None:
    secret = await keys.make("read")
    error = (await gateway.client.post(MESSAGES, json={}, headers=bearer(secret))).json()
    assert error["type"] == "error"
    assert error["error"]["type"] == "permission_error"


async def test_the_clients_key_stays_here(
    gateway: Running, keys: Keys, upstream: Any, start: Start
) -> None:
    secret = await keys.make("infer")
    seen: list[dict[str, str]] = []
    original = gateway.gateway.client.headers

    def spy(headers: Any = None) -> dict[str, str]:
        seen.append(original(headers))
        return seen[-1]

    gateway.gateway.client.headers = spy  # type: ignore[method-assign]
    for headers in (bearer(secret), {"x-api-key": secret}):
        body = ask({"content": "Hello."}, tools=False)
        assert (await gateway.client.post(CHAT, json=body, headers=headers)).status_code == 200
    assert seen
    assert all(secret not in str(each) for each in seen)


async def test_probes_need_no_key_and_learn_little(gateway: Running, keys: Keys) -> None:
    everything = (await gateway.client.get("/ready")).json()
    assert everything["upstream"]["model"] == "scripted"  # without any key anybody may know
    scraped = await gateway.client.get("/metrics")
    assert scraped.status_code == 200
    read, infer, scrape = [await keys.make(scope) for scope in ("read", "infer", "metrics")]
    for headers in ({}, bearer(infer), bearer("none"), bearer(scrape)):
        answer = await gateway.client.get("/ready", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    told = (await gateway.client.get("/ready", headers=bearer(read))).json()
    assert told["upstream"] == everything["upstream"]
    gateway.gateway.client.base_url = "http://127.0.0.1:1"
    answer = await gateway.client.get("/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
    answer = await gateway.client.get("/ready", headers=bearer(read))
    assert "127.0.0.1:1" in answer.json()["upstream"]["reason"]


async def test_metrics_need_a_scope_or_the_token(
    gateway: Running, keys: Keys, start: Start, folder: Path
) -> None:
    scrape = await keys.make("metrics")
    for secret, status in ((scrape, 200), (METRICS_TOKEN, 200), (FORGED, 401)):
        answer = await gateway.client.get("/metrics", headers=bearer(secret))
        assert answer.status_code == status
    assert (await gateway.client.get("/metrics")).status_code == 401
    for path in ("/v1/trajectories", "/v1/models", "/admin/weights"):
        answer = await gateway.client.get(path, headers=bearer(METRICS_TOKEN))
        assert answer.status_code == 403
    open_ = await start(
        access={"key": "a-static-secret-1", "protect_metrics": False},
        store={"url": f"sqlite:///{folder}/open.db"},
    )
    assert (await open_.client.get("/metrics")).status_code == 200


async def test_a_token_for_metrics_closes_nothing(start: Start) -> None:
    gateway = await start(access={"metrics_token": "t" * 16})
    assert (await gateway.client.get("/v1/trajectories")).status_code == 200


# -- tenants --------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["chat", "messages", "responses"])
async def test_tenants_do_not_meet(gateway: Running, keys: Keys, route: str) -> None:
    """What one made, the other can neither find, judge, go on with nor add to."""
    every = ("infer", "feedback", "read")
    one, two = await keys.make(*every, tenant="one"), await keys.make(*every, tenant="two")
    path, body = {
        "chat": (CHAT, ask(calling("Ada"), {"content": "Done."})),
        "messages": (MESSAGES, ask_messages(calling("Ada"), {"content": "Done."})),
        "responses": (RESPONSES, ask_responses(calling("Ada"), {"content": "Done."})),
    }[route]
    first = await gateway.client.post(path, json=body, headers=bearer(one))
    assert first.status_code == 200, first.text
    id_ = first.headers["x-entrogate-trajectory-id"]
    assert id_.startswith("one~")
    calls = re.findall(r"call_eg[0-9a-f]+", first.text)
    theirs, ours = bearer(two), bearer(one)
    assert (await gateway.client.get(f"/v1/trajectories/{id_}", headers=ours)).status_code == 200
    for path_ in (f"/v1/trajectories/{id_}", f"/v1/trajectories/{id_.removeprefix('one~')}"):
        assert (await gateway.client.get(path_, headers=theirs)).status_code == 404
    assert (await gateway.client.get("/v1/trajectories", headers=theirs)).json()["data"] == []
    assert len((await gateway.client.get("/v1/trajectories", headers=ours)).json()["data"]) == 1
    for target in (
        {"trajectory_id": id_},
        {"response_id": first.json()["id"]},
        {"tool_call_id": calls[0]},
    ):
        judged = {**target, "score": 1.0}
        answer = await gateway.client.post("/v1/feedback", json=judged, headers=theirs)
        assert answer.status_code == 404, target
        answer = await gateway.client.post("/v1/feedback", json=judged, headers=ours)
        assert answer.status_code == 200, target
    # The same request, with the same history, the ids of the other's calls, and its id.
    if route == "chat":
        body = follow_up(body, message_of(first), "found")
    stolen = {"x-entrogate-trajectory-id": id_}
    for headers in ({}, stolen):
        answer = await gateway.client.post(path, json=body, headers={**theirs, **headers})
        if headers:
            assert answer.status_code == 400  # no name that a client of another tenant can say
        else:
            assert answer.headers["x-entrogate-trajectory-id"].startswith("two~")
    if route == "responses":
        got = await gateway.client.get(f"{RESPONSES}/{first.json()['id']}", headers=theirs)
        assert got.status_code == 404
        got = await gateway.client.get(f"{RESPONSES}/{first.json()['id']}", headers=ours)
        assert got.status_code == 200
        gone_on = {**body, "previous_response_id": first.json()["id"]}
        answer = await gateway.client.post(path, json=gone_on, headers=theirs)
        assert answer.status_code == 404
    found = (await gateway.client.get(f"/v1/trajectories/{id_}", headers=ours)).json()
    assert found["n_turns"] == 1


async def test_the_same_name_means_each_tenants_own(gateway: Running, keys: Keys) -> None:
    one = await keys.make("infer", "read", tenant="one")
    two = await keys.make("infer", "read", tenant="two")
    for secret in (one, two):
        body = ask({"content": "Hello."}, tools=False)
        headers = {**bearer(secret), "x-entrogate-trajectory-id": "run-1"}
        for _ in range(2):
            assert (await gateway.client.post(CHAT, json=body, headers=headers)).status_code == 200
        found = await gateway.client.get("/v1/trajectories/run-1", headers=bearer(secret))
        assert found.json()["n_turns"] == 2
        listed = await gateway.client.get("/v1/trajectories", headers=bearer(secret))
        assert [each["id"] for each in listed.json()["data"]] == [found.json()["id"]]


async def test_an_admin_sees_all(gateway: Running, keys: Keys) -> None:
    admin, one = await keys.make("admin"), await keys.make("infer", tenant="one")
    body = ask({"content": "Hello."}, tools=False)
    made = await gateway.client.post(CHAT, json=body, headers=bearer(one))
    id_ = made.headers["x-entrogate-trajectory-id"]
    assert id_ == qualified("one", id_)
    found = await gateway.client.get(f"/v1/trajectories/{id_}", headers=bearer(admin))
    assert found.json()["tenant"] == "one"


async def test_lists_of_one_tenant(gateway: Running, keys: Keys, store_url: str) -> None:
    admin, one = await keys.make("admin"), await keys.make("infer", "read", tenant="one")
    body = ask({"content": "Hello."}, tools=False)
    for secret in (admin, one, one):
        assert (await gateway.chat(body, authorization=f"Bearer {secret}")).status_code == 200

    async def tenants(secret: str, **params: str) -> list[str]:
        answer = await gateway.client.get("/v1/trajectories", params=params, headers=bearer(secret))
        assert answer.status_code == 200, answer.text
        return [each["tenant"] for each in answer.json()["data"]]

    assert sorted(await tenants(admin)) == ["", "one", "one"]
    assert await tenants(admin, tenant="one") == ["one", "one"]
    assert await tenants(admin, tenant="") == [""]
    assert await tenants(admin, tenant="two") == []
    assert await tenants(one, tenant="one") == ["one", "one"]
    for other in ("", "two"):
        answer = await gateway.client.get(
            "/v1/trajectories", params={"tenant": other}, headers=bearer(one)
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_tenant")
    for named, there in (("one", 2), ("", 1), ("two", 0)):
        arguments = ["list", "--store", store_url, "--tenant", named, "--json"]
        done = await asyncio.to_thread(
            CliRunner().invoke, trajectories_command, arguments, catch_exceptions=False
        )
        assert len(json.loads(done.output)["items"]) == there, named


# -- the command line -----------------------------------------------------------------------------


def test_a_list_shows_no_secret(store_url: str) -> None:
    secret = run("create", "--name=ci", "--tenant=acme", "--rpm=5", url=store_url).splitlines()[-1]
    listed = run("list", url=store_url)
    assert secret not in listed
    assert secret[:9] in listed
    assert "acme" in listed
    assert "valid" in listed
    run("revoke", secret[:9], url=store_url)
    assert "revoked" in run("list", url=store_url)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--name=x", "--tenant=a b"], "no name for a tenant"),
        (["create", "--name=x", "--tenant=a~b"], "no name for a tenant"),
        (["create", "--name=x", "--expires=soon"], "say for example 12h"),
        (["create", "--name=x", "--scope=everything"], "is not one of"),
        (["revoke", "key_none"], "no key 'key_none'"),
    ],
)
def test_what_cannot_be_done_is_said(store_url: str, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(keys_command, [*arguments, "--store", store_url])
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)


def test_keys_are_hashed(store_url: str, tmp_path: Path) -> None:
    secret = run("create", "--name=x", url=store_url).splitlines()[-1]
    if store_url.startswith("sqlite"):
        for file in tmp_path.glob("store.db*"):
            assert secret.encode() not in file.read_bytes()
