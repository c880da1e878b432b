"""What cannot be listened on is told in one line, before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from entrogate import cli
from entrogate.errors import ConfigError
from entrogate.serve.listening import listening


def test_every_address_of_the_host_is_taken_and_nothing_is_kept_on_a_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on localhost:{port}: Address alre"):
            _addresses("localhost", port)
    assert _addresses("127.0.0.1", port) == [("127.0.0.1", port)]
    assert _addresses("127.0.0.1", port) == [("127.0.0.1", port)]


def _addresses(host: str, port: int) -> list[tuple[str, int]]:
    with listening(host, port) as bound:
        return [each.getsockname()[:2] for each in bound]


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on nowhere\.invalid:1: "):
        _addresses("nowhere.invalid", 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port"], "cannot listen on 127.0.0.1:{port}: Address already in use;"),
        (
            ["--lora", "--vllm-arg=--seed=1", "--reasoning-parser=none", "--port"],
            "--lora, --reasoning-parser, --vllm-arg: for a vLLM that --model starts,",
        ),
    ],
)
def test_the_command_says_it_in_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        store = f"--store=sqlite:///{tmp_path / 'store.db'}"
        upstream = ["serve", "--upstream", "http://127.0.0.1:1", store]
        assert cli.run([*upstream, *options, port]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: " + said.format(port=port))
    assert error.count("\n") == 1
