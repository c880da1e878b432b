import pytest

from entrogate_lab.almanac.library import Entry
from entrogate_lab.almanac.tools import ALL_TOOLS, calculate, call_key, execute, tool_schema
from entrogate_lab.almanac.world import make_world


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7 + 5", 12), ("7-5", 2), (" 12 * 12 ", 144), ("3 - 8", -5)],
)
def test_calculator(expression: str, value: int):
    assert calculate(expression) == value
    assert execute(make_world(0), "calculator", {"expression": expression}) == f"= {value}"


@pytest.mark.parametrize("expression", ["", "7", "7 / 2", "1 + 2 + 3", "2 ** 9", "x + 1", "9" * 40])
def test_calculator_refuses_what_it_cannot_do(expression: str):
    assert execute(make_world(0), "calculator", {"expression": expression}).startswith("cannot")


def test_lookup_says_the_truth_or_that_there_is_none():
    world = make_world(0)
    person = world.unknown_people[3]
    expected = f"city: {world.facts[person, 'city']}"
    assert execute(world, "lookup", {"entity": person, "attribute": "city"}) == expected
    assert execute(world, "lookup", {"entity": "No Body", "attribute": "city"}) == "no record"


def test_faults_of_a_call_come_back_as_text():
    world = make_world(0)
    assert execute(world, "fly", {}) == "no tool fly"
    assert execute(world, "lookup", {"entity": "x"}) == "missing attribute"
    assert execute(world, "search", {"query": "zzz"}) == "nothing found"
    assert execute(world, "read", {"page": "²"}) == "no such page"
    assert execute(world, "read", {"page": 5}) == "no such page"


def _entry(**changes: object) -> Entry:
    values: dict[str, object] = {
        "place": "Old Mill", "attribute": "founder", "value": "Ada", "page": 120,
        "style": "plain", "rumour": "Bea", "body": "plain", "rival": "Cid",
        "rival_first": True, "link": None,
    }  # fmt: skip
    return Entry(**{**values, **changes})  # type: ignore[arg-type]


def test_snippets_and_pages():
    assert _entry().snippet() == "[120] Old Mill: founder Ada"
    assert _entry(style="hedged").snippet() == "[120] Old Mill: founder perhaps Bea"
    assert _entry(style="bare").snippet() == "[120] Old Mill: founder, see page"
    assert _entry().text(120) == "Old Mill: founder Ada"
    assert _entry(body="disputed").text(120) == "Old Mill: founder Cid or Ada"
    linked = _entry(link=345, style="bare")
    assert linked.text(120) == "Old Mill: founder on page 345"
    assert linked.text(345) == "Old Mill: founder Ada"
    assert linked.path() == (120, 345)
    assert _entry(link=345).path() == ()


def test_equal_calls_have_equal_keys():
    one = call_key("lookup", {"entity": "A", "attribute": "city"})
    assert one == call_key("lookup", {"attribute": "city", "entity": "A"})
    assert one != call_key("lookup", {"attribute": "city", "entity": "B"})


def test_schemas_name_every_parameter_as_required():
    for name in ALL_TOOLS:
        function = tool_schema(name)["function"]
        assert function["name"] == name
        assert function["parameters"]["required"] == list(function["parameters"]["properties"])
