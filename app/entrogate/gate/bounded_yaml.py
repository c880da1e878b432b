"""YAML of a policy as nodes, within bounds that hold before anything is built of it.

A few hundred bytes of nested aliases stand for millions of values, so there are none: a first pass
over the events refuses anchors and aliases, and counts.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARACTERS = 256 * 1024
MAX_NODES = 5_000
MAX_DEPTH = 8  # a policy is three mappings deep

# The C parser where PyYAML has it: the one in Python takes a second for what it does in 50 ms.
_yaml: Any = yaml
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlProblem(ValueError):
    """What is wrong with the text, and the place if it has one."""

    def __init__(self, message: str, mark: yaml.Mark | None) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


def compose(text: str) -> yaml.Node | None:
    """The root node of the one document in ``text``; None where it is empty.

    Raises YamlProblem for what is not YAML or beyond the bounds.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlProblem(f"larger than {MAX_CHARACTERS} characters: not a policy", None)
    try:
        _check_events(text)
        return _yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        problem = f"not YAML: {error.problem or error.context}"
        raise YamlProblem(problem, error.problem_mark or error.context_mark) from None
    except yaml.YAMLError as error:
        raise YamlProblem(f"not YAML: {error}", None) from None


def _check_events(text: str) -> None:
    nodes = depth = 0
    for event in _yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if event.anchor is not None:
                raise YamlProblem(
                    "a policy has no anchors and aliases: write the value out", event.start_mark
                )
            if nodes > MAX_NODES:
                raise YamlProblem(f"more than {MAX_NODES} values: not a policy", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlProblem("nested too deeply for a policy", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
