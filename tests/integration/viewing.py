"""A recorded trajectory for the viewer to show."""

from __future__ import annotations

from tests.integration.harness import (
    CHAT,
    SURE,
    UNSURE,
    Running,
    ask,
    calling,
    follow_up,
    message_of,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\u202e\x00"
POLICY = """
schema_version: 1
name: stricter
mode: enforce
defaults: {threshold: 9}
tools: {lookup: }
"""


async def recorded(gateway: Running, text: str = "Who?", **headers: str) -> str:
    """A trajectory of three turns with everything in it that a page can show; its id."""
    body = ask(
        calling("Ada", confidence=UNSURE),
        calling("Bo", name="search", confidence=SURE),
        {"reasoning": "Now I know it", "content": f"Berlin. {HOSTILE}"},
        text=text,
        metadata={"task_id": "task-1"},
    )
    for result in ("lives in Berlin", HOSTILE):
        answer = await gateway.client.post(CHAT, json=body, headers=headers)
        body = follow_up(body, message_of(answer), result)
    answer = await gateway.client.post(CHAT, json=body, headers=headers)
    judged = {"response_id": answer.json()["id"], "score": 0.75, "comment": HOSTILE}
    given = await gateway.client.post("/v1/feedback", json=judged, headers=headers)
    assert given.status_code == 200
    return answer.headers["x-entrogate-trajectory-id"]
