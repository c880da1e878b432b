"""Near-duplicates: which arguments are the same under which rules."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.gate.normalise import MAX_DEPTH, Normaliser
from entrogate.gate.schema import Normalise
from entrogate.wire.history import call_key


def form(arguments: str, *, name: str = "f", **rules: Any) -> bytes:
    return Normaliser().of(call_key(name, arguments), Normalise(**rules))


@pytest.mark.parametrize(
    ("one", "other", "rules"),
    [
        ('{"q":"Rome"}', '{"q":"ROME"}', {"case": True}),
        ('{"q":"STRASSE"}', '{"q":"straße"}', {"case": True}),
        ('{"q":"a  b"}', '{"q":" a\\n b "}', {"spaces": True}),
        ('{"q":1}', '{"q":"1"}', {"numbers": True}),
        ('{"q":1.5}', '{"q":"1.50"}', {"numbers": True}),
        ('{"q":100}', '{"q":"1e2"}', {"numbers": True}),
        ('{"q":1e30}', '{"q":"1.0e30"}', {"numbers": True}),
        ('{"q":0}', '{"q":"-0.0"}', {"numbers": True}),
        ('{"q":12345678901234567890}', '{"q":"12345678901234567890"}', {"numbers": True}),
        ('{"q":1,"at":3}', '{"q":1,"at":4}', {"ignore": ["at"]}),
        ('{"q":1}', '{"q":1,"at":null}', {"ignore": ["at"]}),
        ('{"o":{"page":1,"q":2}}', '{"o":{"q":2}}', {"ignore": ["o.page"]}),
        ('{"o":[{"page":1},{"q":2}]}', '{"o":[{},{"q":2,"page":9}]}', {"ignore": ["o.page"]}),
        (
            '{"o":[{"q":" Rome "}],"n":"2"}',
            '{"n":2.0,"o":[{"q":"rome"}]}',
            {"case": True, "spaces": True, "numbers": True},
        ),
        ("", "{}", {"case": True}),
    ],
)
def test_the_same_under_the_rules_alone(one: str, other: str, rules: dict[str, Any]) -> None:
    assert form(one, **rules) == form(other, **rules)
    if other != "{}":
        assert form(one) != form(other)


@pytest.mark.parametrize(
    ("one", "other", "rules"),
    [
        ('{"q":"a b"}', '{"q":"ab"}', {"spaces": True}),
        ('{"Q":1}', '{"q":1}', {"case": True}),  # keys are the tool's own names
        ('{"q":true}', '{"q":"true"}', {"numbers": True, "case": True}),
        ('{"q":1}', '{"q":true}', {"numbers": True}),
        ('{"q":7}', '{"q":"007"}', {"numbers": True}),
        ('{"q":1}', '{"q":" 1"}', {"numbers": True}),
        ('{"q":1}', '{"q":"１"}', {"numbers": True}),
        ('{"q":1}', '{"q":"NaN"}', {"numbers": True}),
        ('{"q":123456789012345678901}', '{"q":"123456789012345678902"}', {"numbers": True}),
        ('{"page":1}', '{"page":2}', {"ignore": ["o.page"]}),
        ('{"o":{"page":1}}', '{"o":{"page":2}}', {"ignore": ["page"]}),
        ('{"q":[1,2]}', '{"q":[2,1]}', {"case": True, "spaces": True, "numbers": True}),
        ("nope", "NOPE", {"case": True}),  # not JSON: stands for itself
    ],
)
def test_still_different(one: str, other: str, rules: dict[str, Any]) -> None:
    assert form(one, **rules) != form(other, **rules)


def test_calls_of_two_tools_are_never_the_same() -> None:
    assert form("{}", name="f", case=True) != form("{}", name="F", case=True)
    assert form("{}", name='2:f={"', case=True) != form('{"}', name="f", case=True)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.sampled_from(["1", "2.50", "A b", " a B "]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c", "x"]), _JSON, max_size=4)
_RULES = st.fixed_dictionaries(
    {"case": st.booleans(), "spaces": st.booleans(), "numbers": st.booleans(),
     "ignore": st.lists(st.sampled_from(["a", "b.c", "x"]), max_size=2)}
)  # fmt: skip


def reference(value: Any, rules: dict[str, Any], path: tuple[str, ...] = ()) -> Any:
    """The same by a plain route: a hashable value in which equal is what the rules call equal."""
    if isinstance(value, bool) or value is None:
        return ("constant", value)
    if isinstance(value, int | float):
        return ("number", Decimal(json.dumps(value)).normalize() + 0)
    if isinstance(value, list):
        return ("list", tuple(reference(item, rules, path) for item in value))
    if isinstance(value, dict):
        kept = {
            k: reference(v, rules, (*path, k))
            for k, v in value.items()
            if ".".join((*path, k)) not in rules["ignore"]
        }
        return ("object", tuple(sorted(kept.items())))
    text = " ".join(value.split()) if rules["spaces"] else value
    try:
        number = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=str)
    except ValueError:
        number = None
    if rules["numbers"] and isinstance(number, Decimal) and text == text.strip():
        return ("number", number.normalize() + 0)
    return ("text", text.casefold() if rules["case"] else text)


@given(_OBJECTS, _OBJECTS, _RULES)
def test_equal_forms_are_equal_values(
    one: dict[str, Any], other: dict[str, Any], rules: dict[str, Any]
) -> None:
    same = form(json.dumps(one), **rules) == form(json.dumps(other), **rules)
    assert same == (reference(one, rules) == reference(other, rules))


@given(_OBJECTS, _RULES, st.randoms(use_true_random=False))
def test_other_writings_have_the_same_form(
    value: dict[str, Any], rules: dict[str, Any], rng: random.Random
) -> None:
    written = form(json.dumps(value), **rules)
    assert form(json.dumps(_varied(value, rules, rng), indent=1), **rules) == written


def _varied(value: Any, rules: dict[str, Any], rng: random.Random) -> Any:
    """``value`` written differently, as far as the rules say that it does not matter."""
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {k: _varied(v, rules, rng) for k, v in items}
    if isinstance(value, list):
        return [_varied(item, rules, rng) for item in value]
    if isinstance(value, str) and rules["spaces"]:
        value = f"  {value}\n"
    if isinstance(value, str) and rules["case"] and value.isascii():
        value = value.swapcase()
    if isinstance(value, int) and not isinstance(value, bool) and rules["numbers"]:
        value = str(value) if len(str(value)) < 20 else value
    return value


def test_hostile_arguments_keep_their_canonical_form() -> None:
    many = '{"q":[' + ",".join(['"A"'] * 30_000) + "]}"
    long = '{"q":"' + "A" * 2**20 + '"}'
    deep = '{"q":' + "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2) + "}"
    deeper = '{"q":' + "[" * 100_000 + "]" * 100_000 + "}"
    for arguments in (many, long, deep, deeper, '{"q":1' + "0" * 5000 + "}", '{"q"', "\ud800"):
        assert form(arguments, case=True) == call_key("f", arguments)
    nearly = '{"q":' + "[" * (MAX_DEPTH - 1) + '"A"' + "]" * (MAX_DEPTH - 1) + "}"
    assert form(nearly, case=True) == form(nearly.lower(), case=True)


def test_the_work_of_one_request_is_bounded() -> None:
    normaliser, rules = Normaliser(values=10, characters=1000), Normalise(case=True)
    keys = [call_key("f", f'{{"q":"{letter}","r":1}}') for letter in "ABCDEFGH"]
    forms = [normaliser.of(key, rules) for key in keys]
    changed = [one != other for one, other in zip(forms, keys, strict=True)]
    assert changed == [True] * 5 + [False] * 3
