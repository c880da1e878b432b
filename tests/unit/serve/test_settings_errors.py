"""What is wrong in the environment ends `entrogate serve` with one line."""

from __future__ import annotations

import pytest

from entrogate import cli

SERVE = ["serve", "--upstream", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ENTROGATE_SERV__PORT", "1", "no setting ENTROGATE_SERV__PORT; did you mean"),
        ("ENTROGATE_XYZ__PORT", "1", "no setting ENTROGATE_XYZ__PORT\n"),
        ("ENTROGATE_SERVE__PROT", "1", "no setting serve.prot (ENTROGATE_SERVE__PROT)\n"),
        ("ENTROGATE_SERVE__PORT", "abc", "setting serve.port: Input should be a valid integer"),
        ("ENTROGATE_UPSTREAM", "secret", "ENTROGATE_UPSTREAM: want JSON"),
        ("ENTROGATE_MANAGED__EXTRA_ARGS", "secret", "ENTROGATE_MANAGED__EXTRA_ARGS: want JSON"),
        # Kubernetes sets it for a Service `entrogate`: what is refused here comes later.
        ("ENTROGATE_PORT", "tcp://10.0.0.1:8400", "store: the folder /dev/null does not exist"),
    ],
)
def test_one_line(
    variable: str,
    value: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ENTROGATE_SERVE__PORT", "0")
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("ENTROGATE_STORE__URL", "sqlite:////dev/null/none.db")
    assert cli.run(SERVE) == 1
    said_all = capsys.readouterr().err
    assert said_all.startswith(f"error: {said}")
    assert said_all.count("\n") == 1
    assert "secret" not in said_all
