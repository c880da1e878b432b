"""The viewer: its pages over HTTP."""

from __future__ import annotations

import re
from functools import partial
from html import unescape

import httpx
import pytest

from entrogate.errors import ConfigError
from entrogate.gate.policy import parse_policy
from entrogate.serve import viewer
from entrogate.store import filters
from entrogate.ui.pages import SHOWN_CHARACTERS
from entrogate.ui.paging import pages_of
from entrogate.ui.runs import level_of
from tests.integration.harness import Running, ask
from tests.integration.keyed import gateway
from tests.integration.viewing import POLICY, recorded

__all__ = ["gateway"]

TOOL = "lookup"


RUN = re.compile(r'<span class="e(\w) k-(\w+)" title="([^"]*)">(.*?)</span>', re.DOTALL)


def rows(page: httpx.Response) -> list[str]:
    assert page.status_code == 200, page.text
    return re.findall(r'<th scope="row"><a href="/ui/trajectories/([^"]+)"', page.text)


@pytest.mark.both_stores
@pytest.mark.parametrize("few", [filters._FEW_CALLS, 0])
async def test_lists_filter_sort_and_page(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(viewer, "PAGE", 2)
    monkeypatch.setattr(filters, "_FEW_CALLS", few)
    made = [await recorded(gateway) for _ in range(3)]
    plain = await gateway.chat(ask({"content": "Hello."}, tools=False))
    made.append(plain.headers["x-entrogate-trajectory-id"])
    seen: list[str] = []
    href = "/ui/trajectories"
    while href:
        page = await gateway.client.get(href)
        seen += rows(page)
        found = re.search(r'href="([^"]+)" rel="next"', page.text)
        href = unescape(found[1]) if found else ""
    assert seen == made[::-1]
    assert rows(await gateway.client.get("/ui/trajectories?sort=oldest")) == made[:2]
    for query, wanted in (
        ("tool=search", made[:3]),
        ("tool=send_mail", []),
        ("tool=search&decision=allow", made[:3]),
        ("decision=suppress", []),
        ("task_id=task-1", made[:3]),
        ("has_outcome=no", made[3:]),
        ("complete=yes&mode=observe", made[:3]),
    ):
        found = rows(await gateway.client.get(f"/ui/trajectories?{query}&sort=oldest"))
        assert found == wanted[:2], query
    for query in ("has_outcome=maybe", "sort=best", "colour=red", "cursor=x"):
        page = await gateway.client.get(f"/ui/trajectories?{query}")
        assert page.status_code == 400
        assert 'role="alert"' in page.text


@pytest.mark.both_stores
async def test_a_trajectory_shows_every_token_in_its_colour(gateway: Running) -> None:
    id_ = await recorded(gateway)
    page = (await gateway.client.get(f"/ui/trajectories/{id_}")).text
    stored = (await gateway.client.get(f"/v1/trajectories/{id_}?tokens=true")).json()
    sampled = re.findall(r'class="sampled".*?<pre>(.*?)</pre>', page, re.DOTALL)
    assert len(sampled) == len(stored["turns"]) == 3
    for html, turn in zip(sampled, stored["turns"], strict=True):
        runs = RUN.findall(html)
        text = unescape("".join(run[3] for run in runs))
        said = turn["response"]
        assert said["reasoning"].strip() in text
        assert (said["content"] or "").strip() in text
        levels = [level for level, _, title, _ in runs for _ in range(int(title.partition(" ")[0]))]
        assert levels == [level_of(entropy) for entropy in turn["tokens"]["entropy_upper"]]
    assert "lives in Berlin" in page
    assert "task-1" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    missing = await gateway.client.get("/ui/trajectories/traj_none")
    assert missing.status_code == 404
    assert "no trajectory" in missing.text


async def test_tokens_are_shown_by_id_where_their_texts_cannot_be_had(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = await recorded(gateway)
    gateway.gateway.client.base_url = "http://127.0.0.1:1"
    page = await gateway.client.get(f"/ui/trajectories/{id_}")
    assert page.status_code == 200
    assert "shown by their ids" in page.text
    assert "⟨" in page.text


@pytest.mark.both_stores
async def test_the_overview_counts_what_is_stored(gateway: Running) -> None:
    empty = await gateway.client.get("/ui")
    assert "Nothing is recorded yet" in empty.text
    for _ in range(2):
        await recorded(gateway)
    page = (await gateway.client.get("/ui")).text
    assert "The latest 2 trajectories" in page
    decisions = page[page.index("Decisions by tool") :]
    for tool in ("lookup", "search"):
        assert re.search(rf'<th scope="row">{tool}</th><td class="n">2</td>', decisions)
    outcome = page[page.index("Outcome against calls") :]
    assert '<th scope="row">2</th><td class="n">2</td><td class="n">0.750</td>' in outcome
    assert '<th scope="row">base</th><td class="n">6</td>' in page


@pytest.mark.both_stores
async def test_a_policy_is_tried_and_nothing_changes(gateway: Running) -> None:
    id_ = await recorded(gateway)
    before = (await gateway.client.get(f"/v1/trajectories/{id_}")).json()
    page = await gateway.client.post("/ui/policy", data={"policy": POLICY})
    assert page.status_code == 200
    assert "2 of 2 decisions in 2 turns" in page.text
    assert re.search(r"lookup</th><td>allow</td><td>suppress</td><td class=\"n\">1<", page.text)
    assert f'href="/ui/trajectories/{id_}"' in page.text
    assert (await gateway.client.get(f"/v1/trajectories/{id_}")).json() == before
    assert gateway.gateway.policies.main.name == "observe"
    for bad in ("", "nonsense: [", "schema_version: 1\nname: x\nmode: dance"):
        page = await gateway.client.post("/ui/policy", data={"policy": bad})
        with pytest.raises(ConfigError) as said:
            parse_policy(bad, "policy", can_force=True)
        assert page.status_code == 400
        assert str(said.value) in unescape(page.text)


async def test_forms_of_other_sites_are_refused(gateway: Running) -> None:
    origin = {"origin": "https://elsewhere.example"}
    for path, form in (("/ui/policy", {"policy": POLICY}), ("/ui/login", {"key": "x"})):
        for headers in (origin, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            answer = await gateway.client.post(path, data=form, headers=headers)
            assert answer.status_code == 403


async def test_every_page_forbids_what_it_does_not_need(gateway: Running) -> None:
    id_ = await recorded(gateway)
    for path in ("/ui", "/ui/trajectories", f"/ui/trajectories/{id_}", "/ui/policy", "/ui/login"):
        headers = (await gateway.client.get(path)).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


async def test_a_long_trajectory_comes_in_pages(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token stands on one page, also of a turn that is longer than one."""
    id_ = await recorded(gateway)
    stored = (await gateway.client.get(f"/v1/trajectories/{id_}?tokens=true")).json()
    counts = [turn["n_tokens"] for turn in stored["turns"]]
    size = 7
    monkeypatch.setattr(viewer, "pages_of", partial(pages_of, tokens=size))
    href = f"/ui/trajectories/{id_}"
    runs: list[int] = []
    calls = 0
    while href:
        page = await gateway.client.get(href)
        assert page.status_code == 200
        on_it = [int(run[2].partition(" ")[0]) for run in RUN.findall(page.text)]
        assert sum(on_it) <= size
        runs += on_it
        calls += page.text.count("What the gate saw")
        found = re.search(r'href="(\?page=\d+)" rel="next"', page.text)
        href = f"/ui/trajectories/{id_}{found[1]}" if found else ""
    assert sum(runs) == sum(counts)
    assert calls == 2  # each stands where its turn ends
    for number in ("0", "1000", "x", "-1", "9" * 30):
        missing = await gateway.client.get(f"/ui/trajectories/{id_}?page={number}")
        assert missing.status_code == 404


async def test_long_texts_are_cut(gateway: Running) -> None:
    long = "z" * (SHOWN_CHARACTERS + 5)
    answer = await gateway.chat(ask({"content": "Hi."}, text=long, tools=False))
    id_ = answer.headers["x-entrogate-trajectory-id"]
    page = (await gateway.client.get(f"/ui/trajectories/{id_}")).text
    assert "more characters" in page
    assert page.count("z") < SHOWN_CHARACTERS + 100


async def test_the_page_of_the_api_loads_nothing_from_elsewhere(gateway: Running) -> None:
    page = await gateway.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    assert all(each.startswith(("/", "#")) and not each.startswith("//") for each in loaded)
    document = (await gateway.client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    for gone in ("/redoc", "/docs/oauth2-redirect"):
        assert (await gateway.client.get(gone)).status_code == 404


async def test_the_bare_address_leads_to_the_pages(gateway: Running) -> None:
    answer = await gateway.client.get("/", follow_redirects=True)
    assert answer.status_code == 200
    assert str(answer.url).endswith("/ui")
