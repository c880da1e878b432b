"""Policy files: what is accepted, and where and how every error is named."""

import itertools
import shutil

import pytest
import yaml
from click.testing import CliRunner

from entrogate.errors import ConfigError
from entrogate.gate import bundled_policies, load_policy, parse_policy
from entrogate.gate.calibrated import calibration_hash
from entrogate.gate.cli import policy as policy_cli
from entrogate.gate.schema import Calibration, OnRepeat
from entrogate.types import Mode

HEAD = "schema_version: 1\nname: mine\n"


def errors(text, **options):
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "p.yaml", **options)
    return str(caught.value).splitlines()


def test_defaults_reach_only_the_named_tools():
    policy = parse_policy(
        HEAD
        + "defaults: {threshold: 0.9, on_repeat: replay}\n"
        + "tools:\n  lookup:\n  search: {threshold: null, max_calls: 3}\n"
        + "  send: {side_effects: true}\n",
        "p.yaml",
    )
    lookup, search, send = (policy.rule(name) for name in ("lookup", "search", "send"))
    assert lookup is not None
    assert (lookup.threshold, lookup.on_repeat, lookup.max_calls) == (0.9, OnRepeat.REPLAY, None)
    assert search is not None
    assert (search.threshold, search.on_repeat, search.max_calls) == (None, OnRepeat.REPLAY, 3)
    assert send is not None
    assert send.side_effects
    assert send.threshold is None
    assert policy.rule("other") is None


def test_the_smallest_policy_gates_nothing_and_observes():
    policy = parse_policy(HEAD, "p.yaml")
    assert policy.mode is Mode.OBSERVE
    assert policy.tools == {}


@pytest.mark.parametrize(
    ("line", "position", "said"),
    [
        ("mod: enforce", "3:1", "unknown key 'mod'; did you mean 'mode'?"),
        ("zzz: 1", "3:1", "unknown key 'zzz'; known here: schema_version, name"),
        ("tools: {a: {thresold: 1}}", "3:13", "unknown key 'thresold'; did you mean 'threshold'?"),
        ("signal: {bond: lower}", "3:10", "did you mean 'bound'?"),
        ("mode: enforced", "3:7", "found 'enforced'; did you mean 'enforce'?"),
        ("mode: 3", "3:7", "'mode' is one of 'observe', 'enforce' or 'explore'; found 3"),
        ("signal: {statistic: entropy}", "3:21", "'signal.statistic' is one of"),
        ("signal: {bound: middle}", "3:17", "'signal.bound' is one of"),
        ("signal: {min_tokens: 2.5}", "3:22", "'signal.min_tokens' is a whole number; found 2.5"),
        ("signal: {min_tokens: true}", "3:22", "'signal.min_tokens' is a whole number"),
        ("signal: {min_tokens: 0}", "3:22", "'signal.min_tokens': Input should be greater"),
        ('defaults: {threshold: "0.9"}', "3:23", "is a number; found '0.9'; write the number"),
        ("defaults: {threshold: high}", "3:23", "'defaults.threshold' is a number; found 'high'"),
        ("defaults: {threshold: yes}", "3:23", "'defaults.threshold' is a number; found True"),
        ("defaults: {threshold: 1e-3}", "3:23", "with a point before an exponent"),
        ("defaults: {threshold: .nan}", "3:23", "'defaults.threshold' is a finite number"),
        ("defaults: {side_effects: true}", "3:12", "unknown key 'side_effects'"),
        ("defaults: {on_repeat: replayed}", "3:23", "did you mean 'replay'?"),
        ("defaults: {max_calls: -1}", "3:23", "'defaults.max_calls': Input should be greater"),
        ("tools: [lookup]", "3:8", "'tools' is a mapping; found ['lookup']"),
        ("tools: {lookup: 0.9}", "3:17", "'tools.lookup' is a mapping; found 0.9"),
        ("tools: {'*': {}}", "3:9", "only where the policy names it"),
        ("tools: {'search*': {}}", "3:9", "instead of 'search*'"),
        ("tools: {send: {side_effects: true, threshold: 1.0}}", "3:36", "remove 'threshold'"),
        ("tools: {send: {on_repeat: replay, side_effects: true}}", "3:16", "remove 'on_repeat'"),
        ("tools: {send: {side_effects: true, max_calls: 2}}", "3:36", "remove 'max_calls'"),
        ("signal: {statistic: uniform, bound: upper}", "3:30", "uniform has none: remove it"),
        ("explore: {epsilon: 1.5}", "3:20", "'explore.epsilon': Input should be less"),
        ("budget: 3", "3:9", "'budget' is a mapping; found 3"),
        ("force: {tool: a, threshold: 4}", "3:8", "this backend cannot force a call"),
        ("name: again", "3:1", "'name' again; first on line 2"),
        ("tools: {a: {}, a: {}}", "3:16", "'a' again; first on line 3"),
        ("1: 2", "3:1", "keys are plain strings"),
        ("tools: !!python/name:os.system {}", "3:8", "unknown tag"),
        ("tools: !!set {}", "3:8", "unknown tag"),
        ("tools: !!str {}", "3:8", "!!str on a mapping"),
        ("tools: !!map []", "3:8", "!!map on a list"),
        ("tools: !!map text", "3:8", "!!map on a single value"),
        ("tools: !!int ''", "3:8", "is no int"),
        ("tools: !!float _", "3:8", "is no float"),
        ("tools: !!bool perhaps", "3:8", "is no bool"),
        ("tools: !!timestamp never", "3:8", "is no timestamp"),
        ("budget: !!int x", "3:9", "'x' is no int; quote it if it is text"),
        ("mode: 2026-13-45", "3:7", "'2026-13-45' is no timestamp"),
        ("tools: {a: {", "4:1", "not YAML"),
    ],
)
def test_one_error_with_its_place(line, position, said):
    found = errors(f"{HEAD}{line}\n")
    assert len(found) == 1
    assert found[0].startswith(f"p.yaml:{position}: ")
    assert said in found[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "p.yaml:1:1: a policy is a mapping"),
        ("- 1\n", "p.yaml:1:1: a policy is a mapping"),
        ("name: a\n", "p.yaml:1:1: 'schema_version' is missing; write `schema_version: 1`"),
        ("schema_version: 1\n", "p.yaml:1:1: 'name' is missing"),
        ("schema_version: 2\nname: a\n", "p.yaml:1:17: 'schema_version' is one of 1; found 2"),
        ("schema_version: 1\nname: a b\n", "p.yaml:2:7: 'name': String should match pattern"),
        ("a: &a\n  b: *a\n", "p.yaml:1:4: a policy has no anchors and aliases"),
        ("name: *a\n", "p.yaml:1:7: a policy has no anchors and aliases"),
        ("a: " + "[" * 100, "p.yaml:1:11: nested too deeply"),
        ("a: " + "[" * 100_000, "p.yaml:1:"),
        ("- " * 100_000, "p.yaml:1:17: nested too deeply"),
        ("name: 1" + "0" * 5_000 + "\n", "p.yaml:1:7: '1000"),
        ("#" * 300_000, "p.yaml:1:1: larger than 262144 characters"),
        ("a: [" + "1," * 100_000, "p.yaml:1:9999: more than 5000 values"),
        ("a: \x00\n", "p.yaml:1:1: not YAML"),
    ],
)
def test_errors_of_the_whole_file(text, said):
    assert errors(text)[0].startswith(said)


def test_all_errors_at_once_in_the_order_of_the_file():
    found = errors(
        "schema_version: 1\nmod: observe\nsignal: {min_tokens: many}\n"
        "tools:\n  '*': {}\n  a: {threshold: low}\n  b: {side_effects: true, max_calls: 1}\n"
    )
    places = [line.split(": ")[0] for line in found]
    assert places == [
        "p.yaml:1:1",
        "p.yaml:2:1",
        "p.yaml:3:22",
        "p.yaml:5:3",
        "p.yaml:6:18",
        "p.yaml:7:27",
    ]


def test_force_is_accepted_where_the_backend_can():
    policy = parse_policy(HEAD + "force: {tool: a, threshold: 4}\n", "p.yaml", can_force=True)
    assert policy.force is not None
    assert policy.force.threshold == 4.0


def test_the_version_follows_the_content_and_nothing_else():
    one = parse_policy(HEAD + "tools: {a: {threshold: 1}}\n", "p.yaml")
    same = parse_policy("name: mine\nschema_version: 1\n# c\ntools:\n  a: {threshold: 1.0}\n", "q")
    other = parse_policy(HEAD + "tools: {a: {threshold: 1.5}}\n", "p.yaml")
    assert one.version == same.version
    assert one.version != other.version
    assert len(one.version) == 16


@pytest.mark.parametrize(
    ("defaults", "rule"),
    [
        ("threshold: 1.0", "threshold: null"),
        ("on_repeat: replay", "on_repeat: allow"),
        ("max_calls: 3", "max_calls: null"),
        ("replay_for_seconds: 5", "replay_for_seconds: null"),
        ("invalidated_by: [write]", "invalidated_by: []"),
        ("normalise: {case: true}", "normalise: {}"),
    ],
)
def test_a_tool_that_overrides_a_default_is_another_policy(defaults: str, rule: str):
    text = f"{HEAD}defaults: {{{defaults}}}\ntools:\n  a: "
    plain, own = (parse_policy(f"{text}{{{each}}}", "p.yaml") for each in ("", rule))
    assert plain.rule("a") != own.rule("a")
    assert plain.version != own.version
    assert calibration_hash(plain) != calibration_hash(own)


def test_what_changes_nothing_for_a_tool_leaves_the_version():
    plain, own = (
        parse_policy(f"{HEAD}tools:\n  a: {{{each}}}", "p.yaml")
        for each in ("", "threshold: null, on_repeat: allow, max_calls: null")
    )
    assert plain.rule("a") == own.rule("a")
    assert plain.version == own.version


def test_the_bundled_policies():
    assert set(bundled_policies()) == {"balanced", "explore", "observe", "strict"}
    modes = {name: load_policy(name).mode for name in bundled_policies()}
    assert modes == {
        "balanced": Mode.ENFORCE,
        "explore": Mode.EXPLORE,
        "observe": Mode.OBSERVE,
        "strict": Mode.ENFORCE,
    }
    for name in bundled_policies():
        policy = load_policy(name)
        assert policy.name == name
        assert set(policy.tools) == {"lookup", "calculator", "search", "read"}
    balanced, observe = load_policy("balanced"), load_policy("observe")
    assert balanced.model_dump(exclude={"name", "mode"}) == observe.model_dump(
        exclude={"name", "mode"}
    )


def test_a_file_by_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD)
    assert load_policy(path).name == load_policy(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "mine.yaml:1:1: not UTF-8"),
        (b"a\nb: \xff", "mine.yaml:2:1: not UTF-8"),
        (b"#" * (2**20 + 1), "larger than 262144 characters"),
    ],
)
def test_what_is_no_text(tmp_path, content, said):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_policy(path)


def test_an_unknown_name_suggests_a_bundled_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no policy 'balance'.*did you mean 'balanced'\?"):
        load_policy("balance")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_policy(tmp_path)


def test_check_prints_the_policy_with_its_defaults(tmp_path):
    shown = CliRunner().invoke(policy_cli, ["check", "balanced"])
    assert shown.exit_code == 0
    path = tmp_path / "shown.yaml"
    path.write_text(shown.output)
    again, original = load_policy(path), load_policy("balanced")
    assert {n: again.rule(n) for n in again.tools} == {n: original.rule(n) for n in original.tools}
    assert shown.output.startswith(f"# version {original.version}\n")


def test_check_raises_what_the_command_line_prints(tmp_path):
    bad = tmp_path / "bad.yaml"
    shutil.copy(str(bundled_policies()["strict"]), bad)
    bad.write_text(bad.read_text().replace("statistic", "statistik"))
    result = CliRunner().invoke(policy_cli, ["check", str(bad)])
    assert result.exit_code == 1
    assert "unknown key 'statistik'; did you mean 'statistic'?" in str(result.exception)


LAUGHS = "a: &a [lol]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghij")
)


def test_aliases_are_refused_before_they_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred bytes that stand for nine to the ninth values: none of them is looked at."""
    followed: list[object] = []
    monkeypatch.setattr(yaml.SafeLoader, "construct_object", lambda *_: followed.append(_))
    assert len(LAUGHS) < 400
    said = "a policy has no anchors and aliases: write the value out"
    assert errors(LAUGHS) == [f"p.yaml:1:4: {said}"]
    assert not followed


def test_of_many_errors_the_first_ones_are_shown() -> None:
    unknown = "schema_version: 1\nname: a\n" + "".join(f"key{i}: 1\n" for i in range(2_000))
    assert len(errors(unknown)) == 50
    doubled = "schema_version: 1\nname: a\n" + "name: a\n" * 2_000
    assert len(errors(doubled)) == 50


def test_check_says_whether_a_calibration_still_holds(tmp_path):
    rules = "schema_version: 1\nname: mine\ndefaults: {threshold: 0.4}\ntools: {search: }\n"
    block = {
        "model": "m",
        "weights": "base",
        "n": 90,
        "max_loss": 0.05,
        "delta": 0.1,
        "date": "2026-01-01",
        "data": "00",
    }
    policy = parse_policy(rules, "mine")
    signed = calibration_hash(policy, Calibration(**block, hash=""))
    path = tmp_path / "mine.yaml"
    for text, said in (
        (rules, "# calibration: as certified, for model m, weights base\n"),
        (rules.replace("0.4", "0.9"), "# calibration: the policy was changed after calibration"),
    ):
        path.write_text(text + yaml.safe_dump({"calibration": block | {"hash": signed}}))
        assert said in CliRunner().invoke(policy_cli, ["check", str(path)]).output
