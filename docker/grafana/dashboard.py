"""The Grafana dashboard, written down once: run this file to write dashboards/entrogate.json.

    python docker/grafana/dashboard.py

A row is a question and the sentence that helps to read its answer; a panel is a title, what it
means, a unit and its queries. Everything else is the same for all and stands here once.
tests/deploy/ checks that the JSON is up to date and that each query finds data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "entrogate.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
ON = 'instance=~"$instance"'
TOOL = f'{ON}, tool=~"$tool"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """``queries``: legend → PromQL. ``thresholds``: from which value on it is yellow and red."""

    title: str
    text: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    thresholds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    text: str
    panels: Sequence[Panel]


def rate(metric: str, by: str, labels: str = ON) -> str:
    """Events a second, by the labels ``by``."""
    return f"sum by ({by}) (rate(entrogate_{metric}{{{labels}}}[$__rate_interval]))"


def share(metric: str, some: str, labels: str = ON) -> str:
    """The part of the events that ``some`` further labels select; 0 where there are none."""
    part = f"sum(rate(entrogate_{metric}{{{labels}, {some}}}[$__rate_interval]))"
    return f"({part} or vector(0)) / {total(metric, labels)}"


def total(metric: str, labels: str = ON) -> str:
    return f"sum(rate(entrogate_{metric}{{{labels}}}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', labels)})"


def quantiles(histogram: str) -> dict[str, str]:
    return {f"p{q * 100:g}": quantile(q, histogram) for q in (0.5, 0.95, 0.99)}


def change_by_tool() -> str:
    """Mean change in nats: counters only grow, so rises and falls are counted apart."""
    by_sign = "sum by (tool) (rate(entrogate_tool_entropy_nats_total{%s, sign=%s}[1h]))"
    raised, reduced = (by_sign % (TOOL, f'"{sign}"') for sign in ("raised", "reduced"))
    known = f'{TOOL}, sign=~"raised|reduced"'
    count = f"sum by (tool) (rate(entrogate_tool_entropy_changes_total{{{known}}}[1h]))"
    none = f"0 * {count}"
    return f"(({raised} or {none}) - ({reduced} or {none})) / {count}"


def not_made_by_policy() -> str:
    by = "policy, version"
    every = rate("policy_calls_total", by)
    some = rate("policy_calls_total", by, f'{ON}, decision=~"suppress|replay"')
    return f"({some} or 0 * {every}) / {every}"


def of_fuse(name: str) -> str:
    """A figure of the fuses; replicas compute the same."""
    return f"max by (policy, version, tool) (entrogate_fuse_{name}{{{TOOL}}})"


ROWS = (
    Row(
        title="Is it well?",
        text=(
            "Green is well. What to do about yellow and red stands in docs/operations.md, under "
            "the alert of the same name."
        ),
        panels=(
            Panel(
                title="Gateways that answer",
                text="Prometheus can read their metrics.",
                kind="stat",
                width=4,
                height=5,
                queries={"up": f'count(up{{job="entrogate", {ON}}} == 1)'},
            ),
            Panel(
                title="Requests that fail",
                text="Share of the requests answered with a 5xx status.",
                kind="stat",
                width=4,
                height=5,
                unit="percentunit",
                thresholds=(0.01, 0.05),
                queries={"failed": share("requests_total", 'status=~"5.."')},
            ),
            Panel(
                title="Incomplete captures",
                text=(
                    "Share of the turns without all tokens and log-probs: no labels from them, no"
                    " gate on them."
                ),
                kind="stat",
                width=4,
                height=5,
                unit="percentunit",
                thresholds=(0.01, 0.05),
                queries={"gaps": f"{total('capture_gaps_total')} / {total('turns_total')}"},
            ),
            Panel(
                title="Records lost",
                text="Turns of the chosen time that were answered and are not in the store.",
                kind="stat",
                width=4,
                height=5,
                thresholds=(1, 10),
                queries={
                    "lost": "sum(increase(entrogate_store_errors_total"
                    f"{{{ON}, kind!='link'}}[$__range]))"
                },
            ),
            Panel(
                title="Being answered now",
                text="Requests in flight.",
                kind="stat",
                width=4,
                height=5,
                queries={"in flight": f"sum(entrogate_requests_in_flight{{{ON}}})"},
            ),
            Panel(
                title="What runs",
                text="Version, policy and model of each gateway. Replicas should agree.",
                kind="table",
                width=4,
                height=5,
                queries={
                    "version": f"sum by (instance, version) (entrogate_build_info{{{ON}}})",
                    "policy": "sum by (instance, arm, policy, version, mode)"
                    f" (entrogate_policy_info{{{ON}}})",
                    "model": "sum by (instance, model, estimator)"
                    f" (entrogate_upstream_info{{{ON}}})",
                },
            ),
        ),
    ),
    Row(
        title="What becomes of tool calls?",
        text=(
            "A call is allowed, suppressed (the model answers without it), replayed (an identical"
            " earlier result is used) or forced. In mode observe all are allowed, and the reason "
            "tells what the policy would have looked at."
        ),
        panels=(
            Panel(
                title="Proposed calls by decision",
                text="Calls a second, by what was done.",
                unit="ops",
                stacked=True,
                queries={"{{decision}}": rate("tool_calls_total", "decision", TOOL)},
            ),
            Panel(
                title="Share not made",
                text="Calls that the agent did not have to make, of all that the model proposed.",
                unit="percentunit",
                queries={
                    "suppressed": share("tool_calls_total", 'decision="suppress"', TOOL),
                    "replayed": share("tool_calls_total", 'decision="replay"', TOOL),
                    "forced": share("tool_calls_total", 'decision="force"', TOOL),
                },
            ),
            Panel(
                title="Why",
                text="The reasons behind the decisions (docs/policy.md lists them).",
                unit="ops",
                stacked=True,
                queries={
                    "{{decision}}: {{reason}}": rate("tool_calls_total", "decision, reason", TOOL)
                },
            ),
            Panel(
                title="Calls by tool and decision",
                text="Which tools are called, and which of their calls are held back.",
                unit="ops",
                width=12,
                queries={"{{tool}} {{decision}}": rate("tool_calls_total", "tool, decision", TOOL)},
            ),
            Panel(
                title="The price of suppression",
                text=(
                    "Tokens a second that were sampled for calls and thrown away, and turns that "
                    "ended in a replay. With the gate inside the engine no token is wasted."
                ),
                width=12,
                unit="ops",
                queries={
                    "tokens thrown away": total("suppressed_tokens_total"),
                    "replayed turns": total("replayed_turns_total"),
                },
            ),
        ),
    ),
    Row(
        title="What do the policies do?",
        text=(
            "The main policy, and the one on trial for a share of the trajectories, side by side:"
            " they see the same traffic at the same time. Outcomes of both stand in the viewer."
        ),
        panels=(
            Panel(
                title="Turns by policy",
                text=(
                    "Which policy decided. Trajectories keep theirs, so a new share shows as old"
                    " ones end."
                ),
                unit="percentunit",
                stacked=True,
                queries={
                    "{{policy}} {{version}}": f"{rate('policy_turns_total', 'policy, version')}"
                    f" / ignoring(policy, version) group_left {total('policy_turns_total')}"
                },
            ),
            Panel(
                title="Calls a turn, by policy",
                text="Calls that the model proposed.",
                queries={
                    "{{policy}} {{version}}": f"{rate('policy_calls_total', 'policy, version')}"
                    f" / {rate('policy_turns_total', 'policy, version')}"
                },
            ),
            Panel(
                title="Share not made, by policy",
                text="Calls that were suppressed or replayed, of those that the model proposed.",
                unit="percentunit",
                queries={"{{policy}} {{version}}": not_made_by_policy()},
            ),
        ),
    ),
    Row(
        title="Does the promise hold?",
        text=(
            "A calibration is valid for one model, its weights and one kind of capture. Audits test"
            " it on live traffic: the fuse of a tool blows when the lower bound of its losses"
            " passes the limit. Shadows are what the next calibration learns from."
        ),
        panels=(
            Panel(
                title="Calibration of the policies",
                text="State of each policy in force (docs/calibration.md lists them).",
                kind="table",
                queries={
                    "calibration": "sum by (instance, policy, version, state)"
                    f" (entrogate_policy_calibration{{{ON}}})"
                },
            ),
            Panel(
                title="Turns without a valid calibration",
                text=(
                    "In modes enforce and explore, by what is wrong. none: thresholds typed by"
                    " hand. applied: observe where calibration is required."
                ),
                unit="ops",
                stacked=True,
                queries={
                    "{{state}}, {{applied}}": rate("uncalibrated_turns_total", "state, applied")
                },
            ),
            Panel(
                title="Fuses",
                text="1: the tool is only observed until its fuse is armed again.",
                kind="bargauge",
                thresholds=(1, 1),
                queries={
                    "{{tool}} ({{policy}} {{version}})": of_fuse("blown"),
                },
            ),
            Panel(
                title="Losses of audited calls",
                text=(
                    "Bounds on the share of suppressed calls that were needed, valid at all times,"
                    " and the limit of the policy. Without a judged audit they are 0 and 1."
                ),
                unit="percentunit",
                width=12,
                queries={
                    "{{tool}} lower": f"{of_fuse('loss_rate_lower')} or 0 * {of_fuse('max_loss')}",
                    "{{tool}} upper": f"{of_fuse('loss_rate_upper')}"
                    f" or 1 + 0 * {of_fuse('max_loss')}",
                    "{{tool}} limit": of_fuse("max_loss"),
                },
            ),
            Panel(
                title="Audits",
                text="Audits that were judged, and those that still lack an outcome or a score.",
                width=12,
                queries={
                    "{{tool}} judged": of_fuse("audits"),
                    "{{tool}} waiting": of_fuse("audits_waiting"),
                },
            ),
            Panel(
                title="Shadow answers",
                text="By purpose and outcome. dropped: too many were waiting.",
                unit="ops",
                stacked=True,
                queries={"{{purpose}} {{outcome}}": rate("shadows_total", "purpose, outcome")},
            ),
            Panel(
                title="Scores of shadow answers",
                text="By source; a shadow without a score is of no use to a calibration.",
                unit="ops",
                queries={
                    "{{judged_by}}": rate("shadow_scores_total", "judged_by"),
                    "grader: {{kind}}": rate("grader_failures_total", "kind"),
                },
            ),
            Panel(
                title="The price of shadow answers",
                text="Tokens a second that the model server samples for them.",
                unit="ops",
                queries={"tokens": total("shadow_tokens_total")},
            ),
        ),
    ),
    Row(
        title="What does entropy say?",
        text=(
            "Low entropy before a call: the model knew the answer. A call that helps makes the "
            "next segment more certain (ΔH below 0). Exact values come from the plugin in vLLM; "
            "top-k values are midpoints of bounds."
        ),
        panels=(
            Panel(
                title="Entropy of the reasoning segments",
                text=(
                    "Mean token entropy of a segment. A jump after a change of model or weights "
                    "means that the thresholds need calibrating again."
                ),
                unit="suffix: nats",
                queries={
                    "{{estimator}} median": quantile(0.5, "segment_entropy_nats", "estimator"),
                    "{{estimator}} p90": quantile(0.9, "segment_entropy_nats", "estimator"),
                },
            ),
            Panel(
                title="Calls by the sign of ΔH",
                text=(
                    "reduced: the result made the model more certain. unknown: bounds overlap, or"
                    " a segment is missing."
                ),
                unit="ops",
                stacked=True,
                queries={
                    "{{sign}}": rate("tool_entropy_changes_total", "sign", TOOL),
                },
            ),
            Panel(
                title="Mean ΔH by tool, last hour",
                text=(
                    "A tool near 0 tells the model nothing: a candidate for the policy. 'several'"
                    " are turns that called different tools at once."
                ),
                kind="bargauge",
                unit="suffix: nats",
                queries={"{{tool}}": change_by_tool()},
            ),
            Panel(
                title="Distribution of ΔH",
                text="Quarter, median and three-quarter points over all tools.",
                unit="suffix: nats",
                width=12,
                queries={
                    f"p{q * 100:g}": quantile(q, "entropy_change_nats") for q in (0.25, 0.5, 0.75)
                },
            ),
            Panel(
                title="Labels that are unknown",
                text="Why a call has no ΔH label.",
                unit="ops",
                width=12,
                stacked=True,
                queries={"{{reason}}": rate("null_labels_total", "reason")},
            ),
        ),
    ),
    Row(
        title="How fast is it?",
        text=(
            "The gateway's own part is the overhead; the rest of the time is vLLM's. The first "
            "event waits for prefill, so it grows with queueing in vLLM."
        ),
        panels=(
            Panel(
                title="Gateway overhead",
                text="Time between receiving a request and asking vLLM.",
                unit="s",
                thresholds=(0.02, 0.1),
                queries=quantiles("gateway_overhead_seconds"),
            ),
            Panel(
                title="Gate overhead",
                text="Time of one turn's decision.",
                unit="s",
                thresholds=(0.01, 0.05),
                queries=quantiles("gate_overhead_seconds"),
            ),
            Panel(
                title="Time to the first event",
                text="Of streamed answers, as the client sees it.",
                unit="s",
                queries=quantiles("time_to_first_event_seconds"),
            ),
            Panel(
                title="Time of an answer",
                text="From the request to the last byte, commit included.",
                unit="s",
                queries=quantiles("request_seconds"),
            ),
            Panel(
                title="Requests by route and status",
                text="Requests a second.",
                unit="reqps",
                stacked=True,
                queries={"{{route}} {{status}}": rate("requests_total", "route, status")},
            ),
            Panel(
                title="Tokens",
                text="Tokens a second of recorded turns.",
                queries={
                    "prompt": total("prompt_tokens_total"),
                    "sampled": total("sampled_tokens_total"),
                },
            ),
        ),
    ),
    Row(
        title="Is everything kept?",
        text=(
            "A turn is committed before the last byte of its answer. The queue should be near 0; "
            "a commit takes milliseconds on a local disk."
        ),
        panels=(
            Panel(
                title="Time of a commit",
                text="One group commit of the store.",
                unit="s",
                thresholds=(0.05, 0.25),
                queries=quantiles("store_commit_seconds"),
            ),
            Panel(
                title="Queue of the store",
                text="Turns that wait, as a share of what may wait. At 100 % turns are lost.",
                unit="percentunit",
                thresholds=(0.1, 0.5),
                queries={
                    "{{instance}}": f"entrogate_store_queue_depth{{{ON}}}"
                    f" / entrogate_store_queue_limit{{{ON}}}"
                },
            ),
            Panel(
                title="Deferred writes",
                text="Writes that wait in memory because the database is away or full.",
                thresholds=(1, 1000),
                queries={"{{instance}}": f"entrogate_store_deferred{{{ON}}}"},
            ),
            Panel(
                title="Capture gaps",
                text="Why captures are incomplete.",
                unit="ops",
                stacked=True,
                queries={"{{reason}}": rate("capture_gaps_total", "reason")},
            ),
            Panel(
                title="Feedback and exports",
                text=(
                    "Outcomes that clients reported a second, and how often the export beside the"
                    " server died."
                ),
                unit="ops",
                queries={
                    "feedback": total("feedback_total"),
                    "export failures": total("export_failures_total"),
                },
            ),
            Panel(
                title="Faults",
                text="Failures of vLLM, of the store and of the gate (a call then goes through).",
                unit="ops",
                queries={
                    "vLLM: {{kind}}": rate("upstream_errors_total", "kind"),
                    "store: {{kind}}": rate("store_errors_total", "kind"),
                    "gate": total("gate_faults_total"),
                },
            ),
            Panel(
                title="Turns by weights",
                text="Which weights answered: a canary's share as it is.",
                unit="percentunit",
                stacked=True,
                queries={
                    "{{version}}": f"{rate('weight_turns_total', 'version')}"
                    f" / ignoring(version) group_left {total('weight_turns_total')}"
                },
            ),
        ),
    ),
    Row(
        title="What does the process need?",
        text="Of the gateway's process; vLLM's own metrics are on vLLM's /metrics.",
        panels=(
            Panel(
                title="CPU",
                text=(
                    "Cores in use. A gateway is one process on one core: near 1 it is time for a "
                    "replica."
                ),
                thresholds=(0.7, 0.9),
                queries={
                    "{{instance}}": "rate(process_cpu_seconds_total"
                    f'{{job="entrogate", {ON}}}[$__rate_interval])'
                },
            ),
            Panel(
                title="Memory",
                text="Resident memory.",
                unit="bytes",
                queries={"{{instance}}": f'process_resident_memory_bytes{{job="entrogate", {ON}}}'},
            ),
            Panel(
                title="Open file descriptors",
                text="Two for each request in flight, and a few.",
                queries={"{{instance}}": f'process_open_fds{{job="entrogate", {ON}}}'},
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        panels.append(_frame(row.title, "row", (0, y), (COLUMNS, 1)) | {"collapsed": False})
        panels.append(_text(row.text, y + 1))
        y = _place(row.panels, y + 3, panels)
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": "entrogate",
        "title": "Entrogate",
        "description": "Which tool calls are worth making, and is the gateway well?",
        "tags": ["entrogate", "llm"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": _variables()},
        "annotations": {"list": [_restarts()]},
        "panels": panels,
    }


def _place(each: Sequence[Panel], y: int, panels: list[dict[str, Any]]) -> int:
    """Put the panels side by side from ``y`` on; where the next row begins."""
    x = height = 0
    for panel in each:
        if x + panel.width > COLUMNS:
            x, y, height = 0, y + height, 0
        panels.append(_panel(panel, x, y))
        x, height = x + panel.width, max(height, panel.height)
    return y + height


def _frame(title: str, kind: str, at: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    (x, y), (width, height) = at, size
    grid = {"x": x, "y": y, "w": width, "h": height}
    return {"title": title, "type": kind, "gridPos": grid}


def _text(text: str, y: int) -> dict[str, Any]:
    options = {"mode": "markdown", "content": text}
    return _frame("", "text", (0, y), (COLUMNS, 2)) | {"options": options, "transparent": True}


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    frame = _frame(panel.title, panel.kind, (x, y), (panel.width, panel.height))
    at_once = panel.kind != "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": SOURCE,
            "expr": query,
            "legendFormat": legend,
            "instant": at_once,
            "range": not at_once,
            "format": "table" if panel.kind == "table" else "time_series",
        }
        for i, (legend, query) in enumerate(panel.queries.items())
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel)}
    if panel.kind == "timeseries":
        defaults["min"] = None if "nats" in panel.unit else 0
        style = {"mode": "normal" if panel.stacked else "none"}
        marks = {"mode": "line" if panel.thresholds else "off"}
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 0,
            "stacking": style,
            "thresholdsStyle": marks,
        }
    return (
        frame
        | {
            "description": panel.text,
            "datasource": SOURCE,
            "targets": targets,
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": _options(panel),
        }
        | ({"transformations": [{"id": "merge", "options": {}}]} if panel.kind == "table" else {})
    )


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind in ("stat", "bargauge"):
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal"}
    if panel.kind == "timeseries":
        return {"legend": {"displayMode": "list"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {}


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.thresholds:
        steps += [
            {"color": color, "value": value}
            for color, value in zip(("yellow", "red"), panel.thresholds, strict=True)
        ]
    return {"mode": "absolute", "steps": steps}


def _variables() -> list[dict[str, Any]]:
    """Model chooses among gateways: a gateway serves one model, whatever its LoRAs."""
    queries = {
        "model": "label_values(entrogate_upstream_info, model)",
        "instance": 'label_values(entrogate_upstream_info{model=~"$model"}, instance)',
        "tool": f"label_values(entrogate_tool_calls_total{{{ON}}}, tool)",
    }
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return [
        source,
        *(
            {
                "name": name,
                "type": "query",
                "datasource": SOURCE,
                "query": {"query": query, "refId": name},
                "refresh": 2,
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
            for name, query in queries.items()
        ),
    ]


def _restarts() -> dict[str, Any]:
    return {
        "name": "Restarts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": f'changes(process_start_time_seconds{{job="entrogate", {ON}}}[1m]) > 0',
        "titleFormat": "{{instance}} restarted",
    }


def written() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(written(), encoding="utf-8")
    sys.exit(0)
