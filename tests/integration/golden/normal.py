"""What differs from run to run, taken out of recorded text: ids, times, random parts."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from entrogate_lab.bench.script import Vocabulary
from tests.integration.doors import ANTHROPIC_TOOLS, RESPONSES_TOOLS
from tests.integration.harness import TOOLS

# Ids become their kind and a number, so that equal ids stay equal. The order matters.
_IDS = re.compile(
    r"(?P<kind>chatcmpl-tool-|(?:[a-z]+_)?(?:chatcmpl|cmpl)-|call_eg|call_|toolu_|turn_|traj_"
    r"|resp_|msg_|rs_|fc_|req_)(?P<id>[0-9a-f]{8,})"
    r"|(?<![0-9a-zA-Z])(?P<bare>[0-9a-f]{32}|[0-9a-f]{16})(?![0-9a-zA-Z])"
)
_TIMES = re.compile(
    r'("(?:created|created_at|updated_at|completed_at|duration_seconds|result_age_seconds)":\s*)\d[\d.e-]*'
)
_FLOATS = re.compile(r"-?\d+\.\d{6,}(?:e-?\d+)?")
_TOKEN_IDS = re.compile(r'"(prompt_token_ids|token_ids|prompt)":\s*\[([\d, ]*)\]')
# The toy vocabulary numbers tokens as they come, and how long a body is depends on that.
_TOKEN_NAMES = re.compile(r"token_id:(\d+)")
_SIZES = re.compile(r"received \d+ of \d+ bytes")
_PORTS = re.compile(r"127\.0\.0\.1:\d+")
_WIDTH = 120
# What every event of a stream repeats, and the sign that stands for it.
_REPEATED = (
    ('"object":"chat.completion.chunk","created":0,"model":"scripted","choices":[', "~chunk~"),
    ('"object":"text_completion","created":0,"model":"scripted","choices":[', "~text~"),
    (',"logprobs":null,"finish_reason":null,"token_ids":null}]}', "~open~"),
    (',"logprobs":null,"finish_reason":null}]}', "~plain~"),
)


class Normal:
    """Makes the text of one case the same in every run."""

    def __init__(self, vocabulary: Vocabulary, prompt: str) -> None:
        self._vocabulary = vocabulary
        self._numbers: dict[str, dict[str, int]] = {}
        forms = (_quoted(_quoted(prompt)), _quoted(prompt), prompt)
        self._known = dict.fromkeys(forms, "SCRIPT")
        for tools in (TOOLS, ANTHROPIC_TOOLS, RESPONSES_TOOLS):
            for separators in ((",", ":"), (", ", ": ")):
                self._known[json.dumps(tools, separators=separators)] = '"TOOLS"'

    def text(self, text: str) -> str:
        """``text`` without what is different in every run or the same in every case."""
        for known, sign in self._known.items():
            text = text.replace(known, sign)
        text = _PORTS.sub("127.0.0.1:PORT", text)
        text = _TOKEN_IDS.sub(self._tokens, text)
        text = _TOKEN_NAMES.sub(lambda found: f"token_id:{self._name(found[1])}", text)
        text = _SIZES.sub("received N of N bytes", text)
        text = _TIMES.sub(r"\g<1>0", text)
        text = _FLOATS.sub(lambda found: f"{float(found[0]):.4g}", text)
        return _IDS.sub(self._number, text)

    def body(self, raw: bytes) -> str:
        """A JSON body over several lines; what is not compact JSON as it is."""
        text = self.text(raw.decode("utf-8", "backslashreplace"))
        try:
            value = json.loads(text)
        except ValueError:
            return text
        if json.dumps(value, ensure_ascii=False, separators=(",", ":")) != text:
            return f"(not compact) {text}"
        return broken(value)

    def stream(self, raw: bytes) -> str:
        """A stream, what its events repeat abbreviated."""
        text = self.text(raw.decode("utf-8", "backslashreplace")).replace("\r", "\\r")
        for repeated, sign in _REPEATED:
            text = text.replace(repeated, sign)
        # One blank line ends an event: only what departs from that is shown.
        return re.sub(r"(?<!\n)\n\n(?!\n)", "\n", text)

    def value(self, value: Any) -> str:
        """Any JSON value over several lines."""
        return broken(json.loads(self.text(json.dumps(value, ensure_ascii=False))))

    def _name(self, token_id: str) -> str:
        return _quoted(self._vocabulary.text(int(token_id)))

    def _number(self, found: re.Match[str]) -> str:
        # A request's id is part of the ids of its answer: they are counted as one.
        kind, own = found["kind"] or "", found["id"] or found["bare"]
        counted = self._numbers.setdefault("" if kind.endswith("cmpl-") else kind, {})
        number = counted.setdefault(own, len(counted) + 1)
        return f"{kind.rstrip('-_') or 'hex'}-{number}"

    def _tokens(self, found: re.Match[str]) -> str:
        ids = [int(i) for i in found[2].split(",") if i.strip()]
        text = self._vocabulary.decode(ids)
        if found[1] == "token_ids":
            return f'"token_ids":{json.dumps([self._vocabulary.text(i) for i in ids])}'
        for known, sign in self._known.items():
            text = text.replace(known, sign)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return f'"{found[1]}":"{len(ids)} tokens {digest} ending {_quoted(text[-40:])}"'


def broken(value: Any, indent: str = "") -> str:
    """JSON with a line for each part of what does not fit one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= _WIDTH or not value or not isinstance(value, dict | list):
        return line
    deeper = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {broken(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
    parts = [broken(v, deeper) for v in value]
    return "[\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
