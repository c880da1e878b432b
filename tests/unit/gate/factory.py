"""Features and policies for the tests of the gate."""

import math

from entrogate.gate import parse_policy
from entrogate.types import Estimator, Features, Interval, SegmentStats


def segment(entropy=1.0, width=0.2, **changes):
    interval = Interval(lower=entropy, upper=entropy + width)
    values = {
        "start": 0,
        "stop": 10,
        "n_tokens": 10,
        "estimator": Estimator.TOPK,
        "mean": interval,
        "max": interval,
        "tail_mean": interval,
        "last_window": interval,
        "margin_mean": 2.0,
        "margin_min": 0.5,
        "p_tool_call": 0.7,
    }
    return SegmentStats(**(values | changes))


def features(tool="lookup", **changes):
    values = {
        "tool": tool,
        "segment": segment(),
        "capture_complete": True,
        "tool_choice": "auto",
        "repeats": 0,
        "replayable": False,
        "calls_before": 0,
        "tool_calls_before": 0,
        "parallel_calls": 1,
        "replays_in_turn": 0,
        "draw": 0.5,
    }
    return Features(**(values | changes))


def policy(threshold="2.0", tools="{lookup: , send: {side_effects: true}}", **sections):
    text = "schema_version: 1\nname: test\n"
    text += (
        f"defaults: {{threshold: {threshold}, on_repeat: {sections.pop('on_repeat', 'allow')}}}\n"
    )
    text += f"tools: {tools}\n"
    text += "".join(f"{key}: {value}\n" for key, value in sections.items())
    return parse_policy(text, "test.yaml")


NAN = math.nan
