"""Erasure: what is erased is gone, everywhere, and stays away; the audit says who did it."""

from __future__ import annotations

import asyncio
import html
import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import DBAPIError

from entrogate.cli import command_line
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.audit import Act, Deed
from entrogate.store.admin.erasure import BATCH, ToErase
from entrogate.store.database import Database
from entrogate.store.schema import audit, metadata
from tests.integration.conftest import Start
from tests.integration.harness import (
    Running,
    ask,
    calling,
    error_of,
    eventually,
    follow_up,
    message_of,
)
from tests.integration.keyed import Keys, bearer
from tests.unit.store.made import allowed_call, change, turn

pytestmark = pytest.mark.both_stores

SECRET = "Zebulon-Quartz-7431"
TRAJECTORY = "x-entrogate-trajectory-id"


async def run(url: str, *arguments: str, answer: str | None = None) -> Result:
    """In a thread of its own: a command may start an event loop, and this one is running."""
    command = [*arguments, "--store", url]
    return await asyncio.to_thread(CliRunner().invoke, command_line(), command, input=answer)


def rows(url: str) -> dict[str, int]:
    with closing(Database(StoreSettings(url=url))) as database, database.reading() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
            if table.name != "commits"  # numbers and times
        }


async def said(gateway: Running, text: str = SECRET, **headers: str) -> str:
    """A trajectory of two turns with a call, its result and an outcome; its id."""
    body = ask(calling(text), {"content": f"It is {text}."}, text=text)
    first = await gateway.chat(body, **headers)
    second = await gateway.chat(follow_up(body, message_of(first), f"about {text}"), **headers)
    id_ = second.headers[TRAJECTORY]
    given = {"trajectory_id": id_, "score": 1.0, "comment": text}
    assert (await gateway.client.post("/v1/feedback", json=given)).status_code == 200
    return id_


async def test_a_trajectory(gateway: Running, store_url: str) -> None:
    """Everything goes but the tombstone and the audit; what is late changes nothing."""
    before = rows(store_url)
    id_ = await said(gateway)
    kept = rows(store_url)
    assert kept["turns"] == 2
    assert kept["feedback"] == 1
    counted = await gateway.client.delete(f"/v1/trajectories/{id_}", params={"dry_run": "true"})
    assert counted.json() == {
        "object": "trajectory.erased",
        "id": id_,
        "tenant": "",
        "deleted": False,
        "trajectories": 1,
        "turns": 2,
    }
    assert rows(store_url) == kept
    erased = await gateway.client.delete(f"/v1/trajectories/{id_}")
    assert erased.status_code == 200, erased.text
    assert erased.json() == counted.json() | {"deleted": True}
    after = rows(store_url)
    assert after == before | {"erasures": 1, "audit": before["audit"] + 2}
    for path in (f"/v1/trajectories/{id_}", f"/ui/trajectories/{id_}"):
        assert (await gateway.client.get(path)).status_code in (404, 410)
    error = error_of(await gateway.client.get(f"/v1/trajectories/{id_}"), 410)
    assert error["code"] == "erased"
    error_of(await gateway.client.delete(f"/v1/trajectories/{id_}"), 410)
    late = {"trajectory_id": id_, "score": 0.0}
    assert error_of(await gateway.client.post("/v1/feedback", json=late), 410)["code"] == "erased"
    error_of(await gateway.client.delete("/v1/trajectories/traj_never"), 404)
    assert rows(store_url) == after


async def test_feedback_by_response_or_call_is_unknown(gateway: Running) -> None:
    first = await gateway.chat(ask(calling("Ada")))
    (call,) = message_of(first)["tool_calls"]
    await gateway.client.delete(f"/v1/trajectories/{first.headers[TRAJECTORY]}")
    for late in ({"response_id": first.json()["id"]}, {"tool_call_id": call["id"]}):
        error_of(await gateway.client.post("/v1/feedback", json={**late, "score": 1.0}), 404)


@pytest.mark.parametrize("by", ["api", "command"])
async def test_the_conversation_goes_on_in_a_new_trajectory(
    gateway: Running, store_url: str, by: str
) -> None:
    """By call ids and by what was said alike, whatever the gateway remembers of earlier turns."""
    body = ask(calling("Ada"), {"content": "Berlin."}, {"content": "Yes."})
    first = await gateway.chat(body)
    old = first.headers[TRAJECTORY]
    if by == "api":
        assert (await gateway.client.delete(f"/v1/trajectories/{old}")).status_code == 200
    else:
        done = await run(store_url, "trajectories", "erase", old, "--yes")
        assert done.exit_code == 0, done.output
        # Gateways learn within a second of what others erase, and forget what they remember.
        await eventually(lambda: not gateway.gateway.store._heads.by_trajectory)
    body = follow_up(body, message_of(first), "found")
    second = await gateway.chat(body)
    new = second.headers[TRAJECTORY]
    assert new != old
    body["messages"] += [message_of(second), {"role": "user", "content": "Sure?"}]
    third = await gateway.chat(body)
    assert third.headers[TRAJECTORY] == new
    assert len((await gateway.trajectory(third))["turns"]) == 2


async def test_a_turn_that_was_under_way(store_url: str) -> None:
    """Its trajectory is erased before it is committed: nothing comes back, nothing is lost."""
    store = Store.open(StoreSettings(url=store_url), on_loss=lambda *_: pytest.fail("lost"))
    await store.start()
    first, other = turn("one", calls=allowed_call()), turn("other")
    (head, _) = await store.commit_turns([first, other])
    await store.admin.erase(ToErase.trajectory("one"), actor="key_a")
    late = turn("one", parent=first, head=head, change=change(True))
    assert await store.commit_turns([late]) == []
    heads = await store.commit_turns([late, turn("other", parent=other)])
    assert [head.trajectory_id for head in heads] == ["other"]
    assert {item.id for item in (await store.list_trajectories()).items} == {"other"}
    assert await store.admin.is_erased("one")
    assert not await store.admin.is_erased("other")
    await store.aclose()


async def test_a_task_and_a_tenant(start: Start, store_url: str) -> None:
    """More than one transaction's worth; what is of others stays."""
    gateway = await start(access={"refresh_seconds": 0.02})
    store = gateway.gateway.store
    for number in range(BATCH + 3):
        await store.commit_turns([turn(f"acme~t{number}", task_id="week")])
    await store.commit_turns([turn("acme~rest", task_id="other"), turn("mine", task_id="week")])
    keys = Keys(gateway, store_url)
    own = bearer(await keys.make("erase", tenant="acme"))
    other = bearer(await keys.make("erase", tenant="umbrella"))
    admin = bearer(await keys.make("admin"))
    client = gateway.client
    error_of(await client.delete("/v1/tasks/week", headers=other), 404)
    error_of(await client.delete("/v1/tenants/acme", headers=other), 404)
    error_of(await client.delete("/v1/tasks/week?tenant=acme", headers=other), 403)
    error_of(await client.delete("/v1/trajectories/acme~rest", headers=other), 404)
    error_of(await client.delete("/v1/trajectories/mine", headers=other), 404)
    done = await client.delete("/v1/tasks/week", headers=own)
    assert (done.json()["trajectories"], done.json()["tenant"]) == (BATCH + 3, "acme")
    assert {i.id for i in (await store.list_trajectories()).items} == {"acme~rest", "mine"}
    error_of(await client.delete("/v1/tenants/-", headers=own), 404)
    done = await client.delete("/v1/tenants/acme", headers=own)
    assert done.json()["trajectories"] == 1
    assert {i.id for i in (await store.list_trajectories()).items} == {"mine"}
    assert (await client.delete("/v1/tenants/-", headers=admin)).json()["trajectories"] == 1
    assert (await store.list_trajectories()).items == []


async def test_scopes(start: Start, store_url: str) -> None:
    gateway = await start(access={"refresh_seconds": 0.02})
    keys = Keys(gateway, store_url)
    for scope in ("infer", "feedback", "read", "audit"):
        key = bearer(await keys.make(scope))
        for path in ("/v1/trajectories/a", "/v1/tasks/a", "/v1/tenants/a"):
            error_of(await gateway.client.delete(path, headers=key), 403)
        answer = await gateway.client.get("/v1/audit", headers=key)
        assert answer.status_code == (200 if scope == "audit" else 403)


async def test_the_command_counts_and_asks(gateway: Running, store_url: str) -> None:
    id_ = await said(gateway)
    erase = ("trajectories", "erase")
    counted = await run(store_url, *erase, id_, "--dry-run")
    assert counted.output == "would erase 1 trajectories with 2 turns\n"
    refused = await run(store_url, *erase, id_, answer="n\n")
    assert refused.exit_code == 1
    assert rows(store_url)["turns"] == 2
    done = await run(store_url, *erase, id_, answer="y\n")
    assert done.output.endswith("erased 1 trajectories with 2 turns\n")
    assert rows(store_url)["turns"] == 0
    again = await run(store_url, *erase, id_, "--yes")
    assert again.exit_code == 1
    assert "was erased" in str(again.exception)
    assert (await run(store_url, *erase)).exit_code == 2
    assert (await run(store_url, *erase, id_, "--task", "a")).exit_code == 2


# -- the audit -------------------------------------------------------------------------------------


async def test_the_audit_says_who(start: Start, store_url: str) -> None:
    gateway = await start(access={"refresh_seconds": 0.02})
    keys = Keys(gateway, store_url)
    agent = await keys.make("infer", "feedback", tenant="acme")
    cleaner = await keys.make("erase", tenant="acme")
    reader, stranger = await keys.make("audit", tenant="acme"), await keys.make("audit")
    admin = await keys.make("admin")
    ids = {key.shown: key.id for key in await gateway.gateway.store.keys()}
    first = await gateway.chat(ask({"content": SECRET}, text=SECRET), **bearer(agent))
    trajectory = first.headers[TRAJECTORY]
    given = {"response_id": first.json()["id"], "score": 0.5, "comment": SECRET}
    await gateway.client.post("/v1/feedback", json=given, headers=bearer(agent))
    await gateway.client.delete(f"/v1/trajectories/{trajectory}", headers=bearer(cleaner))
    seen = (await gateway.client.get("/v1/audit", headers=bearer(reader))).json()["data"]
    acts = [(entry["action"], entry["actor"]) for entry in seen]
    assert ("feedback.give", ids[agent[:9]]) in acts
    assert acts[0] == ("trajectory.erase", ids[cleaner[:9]])
    assert seen[0]["target"] == trajectory
    assert seen[0]["detail"] == {"kind": "trajectory", "trajectories": 1, "turns": 1}
    assert {entry["tenant"] for entry in seen} == {"acme"}
    others = (await gateway.client.get("/v1/audit", headers=bearer(stranger))).json()["data"]
    assert {entry["tenant"] for entry in others} == {""}
    error_of(await gateway.client.get("/v1/audit?tenant=acme", headers=bearer(stranger)), 403)
    everything = await gateway.client.get("/v1/audit?limit=1000", headers=bearer(admin))
    actions = {entry["action"] for entry in everything.json()["data"]}
    assert {"key.create", "policy.use", "trajectory.erase", "feedback.give"} <= actions
    for text in (SECRET, agent, cleaner, admin, agent[10:], cleaner[10:]):
        assert text not in everything.text
    await keys.revoke(agent)
    listed = await run(store_url, "audit", "list", "--action", "key.revoke", "--json")
    (entry,) = json.loads(listed.output)["items"]
    assert entry["target"] == ids[agent[:9]]
    assert entry["actor"].startswith("cli:")
    text = await run(store_url, "audit", "list", "--limit", "1")
    assert "key.revoke" in text.output
    assert "--before" in text.output


async def test_pages_of_the_audit(gateway: Running) -> None:
    for _ in range(5):
        id_ = (await gateway.chat(ask({"content": "Hi."}))).headers[TRAJECTORY]
        await gateway.client.delete(f"/v1/trajectories/{id_}")
    found: list[Any] = []
    before: int | None = None
    while True:
        params: dict[str, Any] = {"limit": 2, "action": "trajectory.erase"}
        params |= {} if before is None else {"before": before}
        page = (await gateway.client.get("/v1/audit", params=params)).json()
        found += [entry["id"] for entry in page["data"]]
        before = page["next_before"]
        if before is None:
            break
    assert len(found) == 5
    assert found == sorted(found, reverse=True)
    assert {e["actor"] for e in (await gateway.client.get("/v1/audit")).json()["data"]} == {
        "-",
        "gateway",
    }


@pytest.mark.parametrize("change_", [update(audit).values(actor="x"), delete(audit)])
async def test_the_audit_cannot_be_changed(gateway: Running, store_url: str, change_: Any) -> None:
    """By no statement: the database itself refuses."""
    before = rows(store_url)["audit"]
    assert before > 0
    with (
        closing(Database(StoreSettings(url=store_url))) as database,
        pytest.raises(DBAPIError, match="append-only"),
        database.writer.begin() as connection,
    ):
        connection.execute(change_)
    assert rows(store_url)["audit"] == before


async def test_a_policy_is_noted_when_it_changes(start: Start, folder: Path) -> None:
    gateway = await start(policy="observe")
    for policy in ("observe", "balanced", "observe"):
        await gateway.gateway.store.aclose()  # an SQLite file has one gateway at a time
        gateway = await start(policy=policy)
    entries = (await gateway.client.get("/v1/audit?action=policy.use")).json()["data"]
    assert [entry["detail"]["name"] for entry in entries] == ["observe", "balanced", "observe"]


async def test_a_name_that_was_erased(gateway: Running) -> None:
    """A client that goes on naming it gets a new trajectory, and stays in it."""
    body = ask(calling("Ada"), calling("Bo"), {"content": "Done."})
    first = await gateway.chat(body, x_entrogate_trajectory_id="mine")
    assert (await gateway.client.delete("/v1/trajectories/mine")).status_code == 200
    body = follow_up(body, message_of(first), "found")
    second = await gateway.chat(body, x_entrogate_trajectory_id="mine")
    new = second.headers[TRAJECTORY]
    assert new != "mine"
    third = await gateway.chat(
        follow_up(body, message_of(second), "found"), x_entrogate_trajectory_id="mine"
    )
    assert third.headers[TRAJECTORY] == new
    assert len((await gateway.trajectory(third))["turns"]) == 2


async def test_every_turn_and_feedback_names_its_key(start: Start, store_url: str) -> None:
    gateway = await start(access={"refresh_seconds": 0.02})
    keys = Keys(gateway, store_url)
    agent, reader = await keys.make("infer", "feedback"), bearer(await keys.make("admin"))
    (id_,) = [k.id for k in await gateway.gateway.store.keys() if k.shown == agent[:9]]
    answer = await gateway.chat(ask({"content": "Hi."}), **bearer(agent))
    given = {"response_id": answer.json()["id"], "score": 1.0}
    await gateway.client.post("/v1/feedback", json=given, headers=bearer(agent))
    path = f"/v1/trajectories/{answer.headers[TRAJECTORY]}"
    found = (await gateway.client.get(path, headers=reader)).json()
    assert found["turns"][0]["key_id"] == found["feedback"][0]["key_id"] == id_
    begun = await gateway.client.get("/v1/audit?action=trajectory.begin", headers=reader)
    (entry,) = begun.json()["data"]
    assert (entry["actor"], entry["target"]) == (id_, answer.headers[TRAJECTORY])


# -- the viewer ------------------------------------------------------------------------------------


async def test_the_viewer_erases_after_a_tick(gateway: Running, store_url: str) -> None:
    id_ = await said(gateway)
    page = f"/ui/trajectories/{id_}"
    assert "Erase this trajectory" in (await gateway.client.get(page)).text
    refused = await gateway.client.post(page, data={"other": "1"})
    assert refused.status_code == 400
    assert rows(store_url)["turns"] == 2
    done = await gateway.client.post(page, data={"confirm": "yes"})
    assert (done.status_code, done.headers["location"]) == (303, "/ui/trajectories")
    assert rows(store_url)["turns"] == 0
    gone = await gateway.client.post(page, data={"confirm": "yes"})
    assert gone.status_code == 404
    assert "was erased" in gone.text
    audit_page = (await gateway.client.get("/ui/audit?action=trajectory.erase")).text
    assert id_ in audit_page
    assert SECRET not in audit_page


async def test_the_viewer_pages_and_filters_the_audit(start: Start, store_url: str) -> None:
    gateway = await start(access={"refresh_seconds": 0.02})
    keys = Keys(gateway, store_url)
    admin, reader = await keys.make("admin"), await keys.make("read", tenant="acme")
    auditor = await keys.make("audit", tenant="acme")
    for number in range(102):
        await gateway.gateway.store.admin.note(
            Deed(actor="key_<b>", action=Act.SHARE, target=f"w{number:03}")
        )
    first = await gateway.client.get("/ui/audit?actor=key_<b>", headers=bearer(admin))
    assert first.text.count("weights.share</td>") == 100
    assert "key_&lt;b&gt;" in first.text
    (href,) = re.findall(r'href="([^"]+)" rel="next"', first.text)
    second = await gateway.client.get(html.unescape(href), headers=bearer(admin))
    assert second.text.count("weights.share</td>") == 2
    assert (await gateway.client.get("/ui/audit", headers=bearer(reader))).status_code == 403
    own = await gateway.client.get("/ui/audit?tenant=", headers=bearer(auditor))
    assert "weights.share</td>" not in own.text
    assert own.text.count("key.create</td>") == 2
    bad = await gateway.client.get("/ui/audit?before=x", headers=bearer(admin))
    assert bad.status_code == 400
