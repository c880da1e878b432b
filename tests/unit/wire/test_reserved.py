"""The engine's switches are out of clients' reach."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from entrogate.engine import frames
from entrogate.errors import RequestError
from entrogate.wire.reserved import is_ours, raw_without_ours, without_ours

OURS = [
    frames.REQUEST_ARGUMENT,
    frames.CHOICE_ARGUMENT,
    frames.GATE_ARGUMENT,
    "Entrogate",
    " entrogate",
    "\tENTROGATE_gate ",
    "ｅntrogate",
    "entro\u200bgate",
    "\ufeffentrogate_x",
]


@pytest.mark.parametrize("name", OURS)
def test_names_of_ours(name: str) -> None:
    assert is_ours(name)


@pytest.mark.parametrize("name", ["", "session_id", "my_entrogate", "entro", "kv_transfer_params"])
def test_names_of_others(name: str) -> None:
    assert not is_ours(name)


@pytest.mark.parametrize("carrier", ["vllm_xargs", "extra_args"])
@pytest.mark.parametrize("name", OURS)
def test_stripped_wherever_vllm_takes_arguments(carrier: str, name: str) -> None:
    extra = {name: "x", "mine": 1}
    assert without_ours({carrier: extra}) == {carrier: {"mine": 1}}
    nested = {"sampling_params": {carrier: extra, "n": 1}}
    assert without_ours(nested) == {"sampling_params": {carrier: {"mine": 1}, "n": 1}}
    assert extra == {name: "x", "mine": 1}  # the argument itself is not changed


def test_a_body_without_any_is_returned_as_it_is() -> None:
    for body in ({"vllm_xargs": {"mine": 1}}, {"vllm_xargs": None}, {"prompt": "entrogate"}):
        assert without_ours(body) is body


@pytest.mark.parametrize("value", ["x", 1, True, ["entrogate"], [{"entrogate": 1}]])
def test_no_other_kind_may_carry_arguments(value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        without_ours({"vllm_xargs": value})
    assert caught.value.param == "vllm_xargs"


@pytest.mark.parametrize(
    "raw",
    [
        rb'{"vllm_xargs":{"\u0065ntrogate":"a/b/1","k":1}}',
        rb'{"vllm_xargs":{"entrogate":"a/b/1"},"vllm_xargs":{"k":1}}',
        rb'{"vllm_xargs":{"k":1},"vllm_xargs":{"entrogate":"a/b/1","k":1}}',
        rb'{"vllm\u005fxargs":{"entrogate_gate":[1],"k":1}}',
        rb'{"vllm_xargs":{"entrogate":1,"entrogate":2,"k":1}}',
        '{"vllm_xargs":{"entrogate":1,"k":1}}'.encode("utf-16"),
    ],
)
def test_raw_json_cannot_hide_one(raw: bytes) -> None:
    sent = raw_without_ours(raw)
    assert b"ntrogate" not in sent
    assert orjson.loads(sent) == {"vllm_xargs": {"k": 1}}
