"""Reading a policy file: every error with its file, line and column, all of them at once."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from entrogate.errors import ConfigError
from entrogate.gate.bounded_yaml import MAX_CHARACTERS, YamlProblem, compose
from entrogate.gate.schema import (
    Audit,
    Budget,
    Calibration,
    Circle,
    Defaults,
    Explore,
    Force,
    LearnedModel,
    Normalise,
    Policy,
    Signal,
    ToolRule,
)

_SHOWN = 50  # errors of one file
_LONGEST_NUMBER = 100  # characters


def load_policy(name_or_path: str | Path, *, can_force: bool = False) -> Policy:
    """The policy of a bundled name (`bundled_policies`) or of a YAML file.

    ``can_force``: the backend can turn an answer into a call; without it a `force` rule is refused.
    Raises ConfigError with one `file:line:column: message` line per error.
    """
    label, text = read_policy_text(name_or_path)
    return parse_policy(text, label, can_force=can_force)


def parse_policy(text: str, label: str, *, can_force: bool = False) -> Policy:
    """The policy in ``text``; errors call the file ``label``. Raises ConfigError."""
    try:
        root = compose(text)
    except YamlProblem as error:
        raise ConfigError(_Problem(error.mark, error.message).text(label)) from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{label}:1:1: a policy is a mapping: write `schema_version: 1` and so on"
        )
    builder = yaml.SafeLoader("")
    problems = list(islice(_structural_problems(root, builder), _SHOWN))
    if problems:
        raise _config_error(problems, label)
    data: object = builder.construct_document(root)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    try:
        return Policy.model_validate(data, context={"can_force": can_force})
    except ValidationError as error:
        problems = [_problem(root, details) for details in error.errors()[:_SHOWN]]
        raise _config_error(problems, label) from None


def bundled_policies() -> dict[str, Traversable]:
    """The policies that come with Entrogate, by name."""
    found = (f for f in _policy_folder().iterdir() if f.name.endswith(".yaml"))
    return {f.name.removesuffix(".yaml"): f for f in sorted(found, key=lambda f: f.name)}


def _policy_folder() -> Traversable:
    """In the installed package, or at the root of the checkout in an editable install."""
    installed = importlib.resources.files("entrogate") / "policies"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "policies"


def read_policy_text(name_or_path: str | Path) -> tuple[str, str]:
    """What errors call the policy, and its text. Raises ConfigError where it cannot be read."""
    label = str(name_or_path)
    bundled = bundled_policies() if isinstance(name_or_path, str) else {}
    source: Traversable = bundled.get(label, Path(label))
    if label in bundled:
        label = f"{label}.yaml"
    try:
        with source.open("rb") as file:
            raw = file.read(4 * MAX_CHARACTERS + 1)
    except FileNotFoundError:
        near = difflib.get_close_matches(label, bundled, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        known = ", ".join(bundled)
        raise ConfigError(
            f"no policy '{label}': neither a file nor one of {known or 'the bundled ones'}{hint}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror or error}") from None
    if len(raw) > 4 * MAX_CHARACTERS:  # no character takes more bytes
        raise ConfigError(f"{label}: larger than {MAX_CHARACTERS} characters: not a policy")
    try:
        return label, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{label}:{line}:1: not UTF-8") from None


@dataclass(frozen=True, slots=True)
class _Problem:
    mark: yaml.Mark | None
    message: str

    def text(self, label: str) -> str:
        line, column = (self.mark.line + 1, self.mark.column + 1) if self.mark else (1, 1)
        return f"{label}:{line}:{column}: {self.message}"

    @property
    def position(self) -> tuple[int, int]:
        return (self.mark.line, self.mark.column) if self.mark else (0, 0)


def _config_error(problems: list[_Problem], label: str) -> ConfigError:
    ordered = sorted(problems, key=lambda p: p.position)
    return ConfigError("\n".join(p.text(label) for p in ordered))


_SCALAR_TAGS = frozenset({"str", "int", "float", "bool", "null", "timestamp"})
_KINDS: dict[type[yaml.Node], tuple[str, frozenset[str]]] = {
    yaml.ScalarNode: ("a single value", _SCALAR_TAGS),
    yaml.SequenceNode: ("a list", frozenset({"seq"})),
    yaml.MappingNode: ("a mapping", frozenset({"map"})),
}
_PLAIN_TAGS = frozenset[str]().union(*(tags for _, tags in _KINDS.values()))


def _structural_problems(node: yaml.Node, builder: yaml.SafeLoader) -> Iterator[_Problem]:
    """What ``builder`` would accept silently or refuse without a position."""
    kind = node.tag.rpartition(":")[2]
    if kind not in _PLAIN_TAGS:
        yield _Problem(node.start_mark, f"unknown tag {node.tag}")
    elif kind not in _KINDS[type(node)][1]:
        yield _Problem(node.start_mark, f"the tag !!{kind} on {_KINDS[type(node)][0]}")
    elif isinstance(node, yaml.ScalarNode):
        try:
            if kind != "str" and len(node.value) > _LONGEST_NUMBER:
                raise ValueError
            builder.construct_object(node)  # pyright: ignore[reportUnknownMemberType]
        except (ValueError, LookupError, AttributeError, yaml.YAMLError):
            # As `!!int ''`, `!!bool x` and `!!timestamp x` do in PyYAML.
            shown = _show(node.value)
            yield _Problem(node.start_mark, f"{shown} is no {kind}; quote it if it is text")
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _structural_problems(item, builder)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                yield _Problem(key.start_mark, "keys are plain strings; put this one in quotes")
                continue
            if key.value in seen:
                line = seen[key.value].start_mark.line + 1
                yield _Problem(key.start_mark, f"{_show(key.value)} again; first on line {line}")
            seen[key.value] = key
            yield from _structural_problems(value, builder)


_WANTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "string_type": "a string",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _problem(root: yaml.Node, details: ErrorDetails) -> _Problem:
    """A pydantic error in a policy writer's words, at its place in the file."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = [str(p) for p in details["loc"]]
    on_key = kind in ("extra_forbidden", "wildcard")
    if path and path[-1] == "[key]":
        path.pop()
    if "at" in context:
        path.append(str(context["at"]))
        on_key = True
    mark, at = _locate(root, path, on_key=on_key)
    name = ".".join(path)
    if kind == "extra_forbidden":
        return _Problem(mark, _unknown_key(path))
    if kind == "missing":
        return _Problem(at.start_mark, f"'{path[-1]}' is missing{_missing_hint(path)}")
    if kind in _WANTED:
        found = f"'{name}' is {_WANTED[kind]}; found {_show(value)}{_number_hint(value)}"
        return _Problem(mark, found)
    if kind in ("enum", "literal_error"):
        expected = str(context["expected"])
        near = difflib.get_close_matches(str(value), expected.replace("'", "").split(), n=1)
        hint = f"; did you mean '{near[0].strip(',')}'?" if near else ""
        return _Problem(mark, f"'{name}' is one of {expected}; found {_show(value)}{hint}")
    return _Problem(mark, details["msg"] if on_key else f"'{name}': {details['msg']}")


def _missing_hint(path: list[str]) -> str:
    return "; write `schema_version: 1`" if path == ["schema_version"] else ""


def _number_hint(value: object) -> str:
    """YAML 1.1 reads `1e-3` as a string: an exponent wants a point before it."""
    try:
        float(value) if isinstance(value, str) else float("")
    except ValueError:
        return ""
    return "; write the number without quotes, and with a point before an exponent (1.0e-3)"


def _show(value: object) -> str:
    text = "nothing" if value is None else f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _locate(root: yaml.Node, path: list[str], *, on_key: bool) -> tuple[yaml.Mark, yaml.Node]:
    """The mark of the value at ``path`` (or of its key), and the last mapping on the way."""
    node, holder, mark = root, root, root.start_mark
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        holder = node
        pairs = cast("list[tuple[Any, yaml.Node]]", node.value)
        found = next(((k, v) for k, v in pairs if k.value == part), None)
        if found is None:
            break
        key, node = found
        mark = key.start_mark if on_key else node.start_mark
    return mark, holder


def _unknown_key(path: list[str]) -> str:
    keys = _keys_at(Policy, path[:-1])
    near = difflib.get_close_matches(path[-1], keys, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(keys)}"
    return f"unknown key '{path[-1]}'; {hint}"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that the schema knows under ``path``; any part under `tools` is a tool's name."""
    parts: dict[str, type[BaseModel]] = {
        "signal": Signal,
        "model": LearnedModel,
        "normalise": Normalise,
        "defaults": Defaults,
        "tools": ToolRule,
        "budget": Budget,
        "explore": Explore,
        "force": Force,
        "circle": Circle,
        "audit": Audit,
        "calibration": Calibration,
    }
    if path and path[0] == "tools":
        path = ["tools", *path[2:]]
    known = [parts[part] for part in path if part in parts]
    return list((known[-1] if known else model).model_fields)
