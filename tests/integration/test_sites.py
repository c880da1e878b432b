"""Pages of other sites, and names that are not the gateway's: refused on every route."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from entrogate.serve.access import SCOPES
from entrogate.serve.bodies import rule_of
from entrogate.serve.sites import SAFE_METHODS
from entrogate.settings import ServeSettings
from tests.integration.conftest import Start
from tests.integration.harness import CHAT, JSON, Running, ask
from tests.integration.keyed import KEYS, Keys, bearer

FOREIGN = (
    {"origin": "https://elsewhere.example"},
    {"origin": "http://localhost:3000"},  # another port is another site
    {"origin": "null"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"},
)


def routes(gateway: Running) -> list[tuple[str, str, bool]]:
    """Method and path of every route, and whether it is open to all."""
    found: list[tuple[str, str, bool]] = []
    for route in gateway.app.routes:
        if isinstance(route, Route):
            is_open = SCOPES[route.path] is None
            path = re.sub(r"{\w+(?::\w+)?}", "traj_none", route.path)
            methods = sorted((route.methods or {"GET"}) - {"HEAD"})
            found += [(method, path, is_open) for method in methods]
    assert ("POST", CHAT, False) in found
    assert ("POST", "/ui/login", True) in found
    return found


def code(answer: Any) -> str | None:
    """OpenAI's code, or Anthropic's message."""
    error = answer.json()["error"]
    return error.get("code") or error["message"]


async def test_a_name_that_is_not_ours_is_refused_on_every_route(gateway: Running) -> None:
    for method, path, _ in routes(gateway):
        for host in ("rebound.example", "rebound.example:8400", "127.0.0.1.rebound.example"):
            answer = await gateway.client.request(method, path, headers={"host": host})
            assert answer.status_code == 403, (method, path)
            assert "rebound.example" in answer.text
            assert ("type" in answer.json()) == path.startswith("/v1/messages")
    assert (await gateway.client.get("/v1/trajectories")).json()["data"] == []
    refused = await gateway.metric("entrogate_requests_refused_total", reason="host_not_allowed")
    assert refused == 3 * len(routes(gateway))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:80", "a.localhost"]
)
async def test_names_of_this_machine(gateway: Running, host: str) -> None:
    assert (await gateway.client.get("/health", headers={"host": host})).status_code == 200


async def test_a_listed_name(start: Start) -> None:
    listed = ["gateway.example.com", "*.internal.example"]
    gateway = await start(serve={"allowed_hosts": listed}, access=KEYS)
    for host, status in (
        ("gateway.example.com:8400", 200),
        ("Gateway.Example.com.", 200),
        ("a.internal.example", 200),
        ("internal.example", 403),
        ("127.0.0.1", 200),
        ("example.com", 403),
    ):
        answer = await gateway.client.get("/health", headers={"host": host})
        assert answer.status_code == status, host


async def test_other_machines_without_keys(start: Start) -> None:
    """Names that no public DNS can hold; all others have to be listed."""
    gateway = await start(serve={"host": "0.0.0.0"}, access={"insecure": True})
    for host, status in (
        ("192.0.2.7:8400", 200),
        ("entrogate", 200),
        ("entrogate.default.svc.cluster.local", 200),
        ("rebound.example", 403),
    ):
        answer = await gateway.client.get("/v1/trajectories", headers={"host": host})
        assert answer.status_code == status, host


async def test_with_a_key_every_name_will_do(start: Start) -> None:
    gateway = await start(access={**KEYS, "key": "a-static-secret-1"})
    there = {"host": "gateway.example.com"}
    assert (await gateway.client.get("/v1/trajectories", headers=there)).status_code == 401
    with_key = there | bearer("a-static-secret-1")
    assert (await gateway.client.get("/v1/trajectories", headers=with_key)).status_code == 200


async def test_pages_of_other_sites_are_refused_on_every_route(gateway: Running) -> None:
    for method, path, is_open in routes(gateway):
        for headers in FOREIGN:
            answer = await gateway.client.request(method, path, headers=headers)
            refused = answer.status_code == 403
            assert refused == (not is_open or method not in SAFE_METHODS), (method, path, headers)
            if refused:
                assert "another site" in answer.text
    assert (await gateway.client.get("/v1/trajectories")).json()["data"] == []


async def test_our_own_pages_and_links_from_elsewhere(gateway: Running) -> None:
    for headers in (
        {"origin": gateway.url},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ):
        assert (await gateway.client.get("/ui", headers=headers)).status_code == 200
    assert (await gateway.chat(ask({"content": "Hi."}), origin=gateway.url)).status_code == 200


async def test_a_page_that_has_a_key_may_ask(start: Start, store_url: str) -> None:
    gateway = await start(access=KEYS)
    secret = await Keys(gateway, store_url).make("infer", "read")
    body = ask({"content": "Hi."})
    for headers, status in ((FOREIGN[0], 401), (FOREIGN[0] | bearer(secret), 200)):
        answer = await gateway.client.post(CHAT, json=body, headers=headers)
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers
    # A session is sent by every page, so it does for our own alone.
    await gateway.client.post("/ui/login", data={"key": secret})
    assert (await gateway.client.get("/ui")).status_code == 200
    assert (await gateway.client.get("/ui", headers=FOREIGN[0])).status_code == 403


async def test_cors(start: Start) -> None:
    site = "https://chat.example.com"
    gateway = await start(serve={"cors_origins": [site]})
    asked = {
        "origin": site,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    before = await gateway.client.options(CHAT, headers=asked)
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == site
    assert before.headers["access-control-allow-headers"] == "authorization,content-type"
    answer = await gateway.chat(ask({"content": "Hi."}), origin=site)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == site
    assert "origin" in answer.headers["vary"]
    refused = await gateway.chat({"messages": 7}, origin=site)
    assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (400, True)
    for elsewhere in (FOREIGN[0]["origin"], "null", site + ".example"):
        other = await gateway.client.options(CHAT, headers={**asked, "origin": elsewhere})
        assert "access-control-allow-origin" not in other.headers
        assert (await gateway.chat(ask({"content": "Hi."}), origin=elsewhere)).status_code == 403
    page = await gateway.client.options("/ui/policy", headers=asked)
    assert "access-control-allow-origin" not in page.headers


async def test_cors_for_every_site_needs_keys(start: Start, folder: Path) -> None:
    gateway = await start(serve={"cors_origins": ["*"]})
    assert (await gateway.chat(ask({"content": "Hi."}), **FOREIGN[0])).status_code == 403
    closed = await start(
        serve={"cors_origins": ["*"]},
        access={"key": "a-static-secret-1"},
        store={"url": f"sqlite:///{folder}/closed.db"},
    )
    headers = FOREIGN[0] | bearer("a-static-secret-1")
    answer = await closed.client.post(CHAT, json=ask({"content": "Hi."}), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == FOREIGN[0]["origin"]


# -- content types --------------------------------------------------------------------------------

SIMPLE = ("text/plain", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x", "", None)
"""What a page of another site can send unasked, and no type at all."""


async def test_every_route_takes_its_own_kind_of_body(gateway: Running) -> None:
    for method, path, _ in routes(gateway):
        if method not in ("POST", "PUT", "PATCH"):
            continue
        kinds = rule_of(path).media.value
        form = "application/x-www-form-urlencoded"
        for kind in (*SIMPLE, form, "application/json", "application/json; charset=utf-8"):
            headers = {} if kind is None else {"content-type": kind}
            answer = await gateway.client.request(method, path, content=b"{}", headers=headers)
            fits = kind is not None and kind.partition(";")[0] in kinds
            assert ("`Content-Type: " in answer.text) != fits, (path, kind)
            if not fits:
                assert answer.status_code == 400, (path, kind)
    assert (await gateway.client.get("/v1/trajectories")).json()["data"] == []


async def test_json_of_a_kind(gateway: Running) -> None:
    """vLLM takes no other; our own routes do."""
    headers = {"content-type": "application/vnd.api+json"}
    answer = await gateway.client.post(CHAT, content=b"{}", headers=headers)
    assert code(answer) == "unsupported_media_type"
    answer = await gateway.client.post("/v1/feedback", content=b"{}", headers=headers)
    assert code(answer) != "unsupported_media_type"
    answer = await gateway.client.post(CHAT, content=b"{}", headers=JSON)
    assert code(answer) != "unsupported_media_type"


@pytest.mark.parametrize(
    "values",
    [
        {"allowed_hosts": "https://gateway.example.com"},
        {"allowed_hosts": "a*b"},
        {"cors_origins": "chat.example.com"},
        {"cors_origins": "https://chat.example.com/"},
    ],
)
def test_names_that_are_none(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="want "):
        ServeSettings(**values)  # type: ignore[arg-type]


def test_names_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from entrogate.settings import Settings

    monkeypatch.setenv("ENTROGATE_SERVE__ALLOWED_HOSTS", "a.example, b.example")
    assert Settings().serve.allowed_hosts == ("a.example", "b.example")
