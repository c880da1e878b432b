"""The viewer on a real vLLM: the texts of tokens are those of the model's tokenizer."""

from __future__ import annotations

import re
from html import unescape

from tokenizers import Tokenizer

from tests.e2e.conftest import MODEL, StartGateway, chat_body, tasks
from tests.integration.harness import CHAT

SAMPLED = re.compile(r'class="sampled".*?<pre>(.*?)</pre>', re.DOTALL)
RUN = re.compile(r"<span [^>]*>(.*?)</span>", re.DOTALL)


def test_a_trajectory_reads_as_the_model_wrote_it(start: StartGateway) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    gateway = start()
    with gateway.client() as client:
        for task in tasks(3):
            answer = client.post(CHAT, json=chat_body(task))
            id_ = answer.headers["x-entrogate-trajectory-id"]
            stored = client.get(f"/v1/trajectories/{id_}?tokens=true").json()
            page = client.get(f"/ui/trajectories/{id_}").text
            (shown,) = SAMPLED.findall(page)
            ids = stored["turns"][0]["tokens"]["token_ids"]
            assert len(ids) > 5
            said = tokenizer.decode(ids, skip_special_tokens=False)
            assert unescape("".join(RUN.findall(shown))) == said
            assert "shown by their ids" not in page
