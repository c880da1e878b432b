"""Which results were errors."""

import pytest

from entrogate.gate.failures import is_failure

FAILURES = [
    "Error: no such file",
    "error",
    "ERROR 404",
    "  \n Error executing tool",
    "[Error] out of memory",
    "[ERROR]: no",
    "Exception in thread main",
    "Traceback (most recent call last):\n  File",
    "ValueError: no number",
    "json.decoder.JSONDecodeError: Expecting value",
    "java.lang.NullPointerException: x",
    "TypeError:",
    "An error occurred while running the tool. Please try again.",
    "<tool_use_error>File has not been read yet</tool_use_error>",
    "<error>no</error>",
    '{"error":"not found"}',
    ' {"error": {"code": 404}, "data": null}',
    '{"error":true}',
    '{"isError":true,"content":[]}',
    '{"is_error":true}',
]
FINE = [
    "",
    "Berlin",
    "Errors are human",
    "The error was found",
    "terror: a film",
    "KeyError 'x' is raised for a missing key",
    "Exceptional weather",
    "No error: all is well",
    '{"error":null,"data":1}',
    '{"error":""}',
    '{"error":[]}',
    '{"error":{}}',
    '{"error":false}',
    '{"error":0}',
    '{"isError":false}',
    '{"isError":"true"}',
    '{"data":{"error":"x"}}',
    '[{"error":"x"}]',
    '"error: x"',
    '{"error":"x"',
    "{",
    "\ud800",
    '{"a":"\ud800","error":1}',
]


@pytest.mark.parametrize("result", FAILURES)
def test_errors(result: str) -> None:
    assert is_failure(result)


@pytest.mark.parametrize("result", FINE)
def test_no_errors(result: str) -> None:
    assert not is_failure(result)


@pytest.mark.parametrize(
    "result",
    [
        "x." * 100_000 + "Error: x",
        "A" * 1_000_000,
        " " * 1_000_000 + "Error",
        '{"a":' * 10_000,
        '{"a":"' + "x" * 2**20 + '","error":1}',
    ],
)
def test_long_results_are_not_read_through(result: str) -> None:
    assert not is_failure(result)
