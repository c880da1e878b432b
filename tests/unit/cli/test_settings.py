"""Settings from the environment that are no settings."""

import pytest

from entrogate import cli

NUMBERS = [
    "ENTROGATE_UPSTREAM__READ_TIMEOUT_SECONDS",
    "ENTROGATE_STORE__PATIENCE_SECONDS",
    "ENTROGATE_SHADOW__SHARE",
    "ENTROGATE_SERVE__REQUEST_TIMEOUT_SECONDS",
]


@pytest.mark.parametrize("text", ["nan", "inf"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_not_finite_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    assert cli.run(["serve", "--upstream", "http://127.0.0.1:1"]) == 1
    where = name.removeprefix("ENTROGATE_").replace("__", ".").lower()
    said = capsys.readouterr().err
    assert said == f"error: setting {where}: Input should be a finite number\n"
