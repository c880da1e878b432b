"""A model's folder, read without loading the model."""

import json
from pathlib import Path

import pytest

from entrogate.errors import ConfigError
from entrogate.upstream import model_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"vocab_size": 7}, 7),
        ({"text_config": {"vocab_size": 9}}, 9),
        ({"vocab_size": "x"}, None),
        ({"text_config": 3}, None),
    ],
)
def test_vocabulary_size(model: Path, config: dict[str, object], size: int | None) -> None:
    (model / "config.json").write_text(json.dumps(config))
    assert model_folder.vocabulary_size(str(model)) == size


def test_vocabulary_size_of_an_uncached_hub_model_is_unknown() -> None:
    assert model_folder.vocabulary_size("no-such-org/no-such-model") is None


def test_a_config_that_is_not_json_is_a_config_error(model: Path) -> None:
    (model / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        model_folder.vocabulary_size(str(model))


def test_tokens_are_found_among_the_added_ones(model: Path) -> None:
    tokenizer = {"added_tokens": [{"id": 7, "content": "<think>"}, {"id": "x"}, 3]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"added_tokens_decoder": {"8": {"content": "</think>"}, "x": {}, "9": None}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert model_folder.token_ids(str(model), ["<think>", "</think>", "<none>"]) == {
        "<think>": 7,
        "</think>": 8,
    }


def test_a_folder_without_a_tokenizer_knows_no_tokens(model: Path) -> None:
    assert model_folder.token_ids(str(model), ["<think>"]) is None


@pytest.mark.parametrize("content", ["[", "[]", "[" * 100_000])
def test_a_tokenizer_that_cannot_be_read_is_a_config_error(model: Path, content: str) -> None:
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        model_folder.token_ids(str(model), ["<think>"])
