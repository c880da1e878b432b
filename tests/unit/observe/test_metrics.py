"""What Prometheus reads after known turns; labels that stay few."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from entrogate import __version__
from entrogate.observe import Metrics
from entrogate.observe.metrics import PolicyInForce
from entrogate.types import (
    Action,
    CallRecord,
    Capture,
    Decision,
    EntropyChange,
    Estimator,
    Interval,
    Mode,
    TurnRecord,
)
from tests.unit.gate.factory import features, segment


def call(name="lookup", applied=Action.ALLOW, reason="uncertain"):
    decision = Decision(
        action=applied,
        applied=applied,
        reason=reason,
        propensity=1.0,
        mode=Mode.ENFORCE,
        policy_name="p",
        policy_version="v",
    )
    return CallRecord(
        call_id="c", index=0, name=name, arguments="{}", features=features(), decision=decision
    )


def turn(**changes):
    none = np.zeros(0, dtype=np.float32)
    ids = np.zeros(0, dtype=np.int32)
    values = {
        "turn_id": "t",
        "trajectory_id": "y",
        "task_id": None,
        "parent": None,
        "request_id": "r",
        "response_id": "s",
        "choice_index": 0,
        "created_at": 0.0,
        "duration_seconds": 0.0,
        "model": "m",
        "new_messages": b"[]",
        "n_messages": 1,
        "tools": None,
        "params": b"{}",
        "response": b"{}",
        "finish_reason": "stop",
        "prompt_token_ids": ids,
        "capture": Capture(
            token_ids=ids,
            logprobs=none,
            entropy_lower=none,
            entropy_upper=none,
            margin=none,
            tail_mass=none,
            p_tool_call=none,
            estimator=Estimator.TOPK,
            top_k=20,
        ),
        "spans": (),
        "segment": None,
        "altered": (),
        "capture_gap": None,
        "wasted_tokens": 0,
        "calls": (),
        "results": (),
        "change": None,
        "fingerprint": b"",
        "sequence_hash": b"",
    }
    return TurnRecord(**(values | changes))


def change(delta, reduced, reason=None):
    return EntropyChange(
        before=None,
        after=None,
        delta=None if delta is None else Interval(lower=delta, upper=delta),
        delta_normalised=None,
        reduced=reduced,
        null_reason=reason,
    )


def samples(metrics):
    """Values by name and label values, these in the order of the label names."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    every = [s for f in families for s in f.samples]
    return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for s in every}


def test_a_turn_with_everything():
    metrics = Metrics()
    calls = (call(), call(), call("search", Action.SUPPRESS, "certain"))
    record = turn(
        calls=calls, wasted_tokens=7, segment=segment(entropy=0.4, width=0.2), replayed=True
    )
    metrics.record_turn(record, mode=Mode.ENFORCE)
    seen = samples(metrics)
    assert seen["entrogate_turns_total", "enforce"] == 1
    assert seen["entrogate_tool_calls_total", "allow", "uncertain", "lookup"] == 2
    assert seen["entrogate_tool_calls_total", "suppress", "certain", "search"] == 1
    assert seen["entrogate_suppressed_tokens_total",] == 7
    assert seen["entrogate_replayed_turns_total",] == 1
    assert seen["entrogate_segment_entropy_nats_count", "topk"] == 1
    assert seen["entrogate_segment_entropy_nats_sum", "topk"] == pytest.approx(0.5)


def test_the_metric_shows_what_was_done_not_what_was_said():
    metrics = Metrics()
    observed = call(applied=Action.ALLOW, reason="certain")
    metrics.record_turn(turn(calls=(observed,)), mode=Mode.OBSERVE)
    assert samples(metrics)["entrogate_tool_calls_total", "allow", "certain", "lookup"] == 1


def test_changes_by_their_sign():
    metrics = Metrics()
    for known in (change(-1.5, True), change(2.0, False), change(-0.5, None, "overlapping_bounds")):
        metrics.record_turn(turn(change=known), mode=Mode.OBSERVE)
    metrics.record_turn(turn(change=change(None, None, "short_segment")), mode=Mode.OBSERVE)
    seen = samples(metrics)
    bucket = "entrogate_entropy_change_nats_bucket"  # with negative buckets there is no _sum
    assert [seen[bucket, le, "reduced"] for le in ("-2.0", "-1.0")] == [0, 1]
    assert [seen[bucket, le, "raised"] for le in ("1.0", "2.0")] == [0, 1]
    assert [seen[bucket, le, "unknown"] for le in ("-1.0", "-0.5")] == [0, 1]
    assert seen["entrogate_null_labels_total", "overlapping_bounds"] == 1
    assert seen["entrogate_null_labels_total", "short_segment"] == 1


def test_a_gap_is_counted():
    metrics = Metrics()
    metrics.record_turn(turn(capture_gap="missing_logprobs"), mode=Mode.OBSERVE)
    assert samples(metrics)["entrogate_capture_gaps_total", "missing_logprobs"] == 1


def test_tool_labels_are_bounded():
    metrics = Metrics()
    for i in range(200):
        metrics.record_turn(turn(calls=(call(f"tool{i}"),)), mode=Mode.OBSERVE)
    metrics.record_turn(turn(calls=(call("tool3"),)), mode=Mode.OBSERVE)
    tools = {k[3]: v for k, v in samples(metrics).items() if k[0] == "entrogate_tool_calls_total"}
    assert len(tools) == 65
    assert tools["other"] == 136
    assert tools["tool3"] == 2


@pytest.mark.parametrize(
    ("name", "label"), [('x"} 1\n', "x_1_"), ("", "other"), ("é" * 9, "_"), ("a" * 99, "a" * 64)]
)
def test_tool_labels_are_harmless(name, label):
    metrics = Metrics()
    metrics.record_turn(turn(calls=(call(name),)), mode=Mode.OBSERVE)
    assert samples(metrics)["entrogate_tool_calls_total", "allow", "uncertain", label] == 1


def test_the_server_itself():
    metrics = Metrics()
    metrics.record_request("/v1/chat/completions", 200)
    metrics.record_upstream_error("timeout")
    metrics.record_store_error("full", 3)
    metrics.record_gate_fault()
    metrics.observe_gate(0.0003)
    metrics.observe_gateway(0.002)
    metrics.observe_commit(0.004)
    with metrics.in_flight("/v1/models"):
        assert samples(metrics)["entrogate_requests_in_flight", "/v1/models"] == 1
    seen = samples(metrics)
    assert seen["entrogate_requests_in_flight", "/v1/models"] == 0
    assert seen["entrogate_requests_total", "/v1/chat/completions", "200"] == 1
    assert seen["entrogate_upstream_errors_total", "timeout"] == 1
    assert seen["entrogate_store_errors_total", "full"] == 3
    assert seen["entrogate_gate_faults_total",] == 1
    assert seen["entrogate_gate_overhead_seconds_sum",] == 0.0003
    assert seen["entrogate_gateway_overhead_seconds_sum",] == 0.002
    assert seen["entrogate_store_commit_seconds_bucket", "0.005"] == 1
    assert seen["entrogate_store_commit_seconds_bucket", "0.002"] == 0


def test_the_queue_is_read_when_asked():
    metrics = Metrics()
    depth = [1]
    metrics.watch_store_queue(lambda: depth[0], lambda: depth[0] - 2, limit=10)
    depth[0] = 9
    assert samples(metrics)["entrogate_store_queue_depth",] == 9
    assert samples(metrics)["entrogate_store_deferred",] == 7
    assert samples(metrics)["entrogate_store_queue_limit",] == 10


def test_a_request_that_fails_is_no_longer_in_flight():
    metrics = Metrics()
    with pytest.raises(KeyError), metrics.in_flight("/x"):
        raise KeyError
    assert samples(metrics)["entrogate_requests_in_flight", "/x"] == 0


def test_two_servers_in_one_process():
    one, other = Metrics(), Metrics()
    one.record_gate_fault()
    assert samples(one)["entrogate_gate_faults_total",] == 1
    assert samples(other)["entrogate_gate_faults_total",] == 0


def test_openmetrics_on_request():
    _, content_type = Metrics().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")


def test_changes_by_the_tool_that_was_called():
    metrics = Metrics()
    reduced, raised = change(-1.5, True), change(2.0, False)
    metrics.record_turn(turn(change=reduced), mode=Mode.OBSERVE, called={"lookup"})
    metrics.record_turn(turn(change=reduced), mode=Mode.OBSERVE, called={"lookup"})
    metrics.record_turn(turn(change=raised), mode=Mode.OBSERVE, called={"lookup"})
    metrics.record_turn(turn(change=raised), mode=Mode.OBSERVE, called={"lookup", "search"})
    unknown = change(-0.5, None, "overlapping_bounds")
    metrics.record_turn(turn(change=unknown), mode=Mode.OBSERVE, called={"search"})
    metrics.record_turn(turn(change=None), mode=Mode.OBSERVE, called={"search"})
    seen = samples(metrics)
    count, nats = "entrogate_tool_entropy_changes_total", "entrogate_tool_entropy_nats_total"
    assert seen[count, "reduced", "lookup"] == 2
    assert seen[nats, "reduced", "lookup"] == 3.0
    assert seen[nats, "raised", "lookup"] == 2.0
    assert seen[count, "raised", "several"] == 1
    assert seen[count, "unknown", "search"] == 1
    assert (nats, "unknown", "search") not in seen


def test_faults_are_there_before_they_happen():
    """A counter that appears with 1 is no rise to Prometheus: the first fault would be missed."""
    seen = samples(Metrics())
    for kind in ("UpstreamUnavailable", "UpstreamTimeout", "UpstreamProtocol"):
        assert seen["entrogate_upstream_errors_total", kind] == 0
    for kind in ("commit", "lost"):
        assert seen["entrogate_store_errors_total", kind] == 0


def test_what_is_running_has_one_sample_each():
    metrics = Metrics()
    for name, version, mode in (("observe", "v1", Mode.OBSERVE), ("strict", "v2", Mode.ENFORCE)):
        only = PolicyInForce(arm="main", name=name, version=version, mode=mode, share=1.0)
        metrics.set_policies([only])
    metrics.set_upstream("old", "topk")
    metrics.set_upstream("new", "exact")
    seen = samples(metrics)
    infos = {key[1:] for key in seen if key[0] == "entrogate_policy_info"}
    assert infos == {("main", "enforce", "strict", "v2")}
    assert seen["entrogate_policy_share", "main", "strict", "v2"] == 1.0
    assert {k[1:] for k in seen if k[0] == "entrogate_upstream_info"} == {("exact", "new")}
    assert seen["entrogate_build_info", __version__] == 1


def test_times_of_an_answer():
    metrics = Metrics()
    metrics.observe_first_event(0.2)
    metrics.observe_answer(3.0)
    metrics.record_feedback()
    seen = samples(metrics)
    assert seen["entrogate_time_to_first_event_seconds_bucket", "0.1"] == 0
    assert seen["entrogate_time_to_first_event_seconds_bucket", "0.25"] == 1
    assert seen["entrogate_request_seconds_sum",] == 3.0
    assert seen["entrogate_feedback_total",] == 1
    assert seen["process_open_fds",] > 0
