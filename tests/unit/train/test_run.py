"""What a run refuses before it loads a model."""

from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from entrogate.model_hashes import hashes_of
from entrogate.train.data import DataError, DataReport
from entrogate.train.run import _check_tokenizer


def test_data_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    own = hashes_of(tmp_path).tokenizer
    _check_tokenizer(str(tmp_path), DataReport(tokenizer_hashes={own, ""}))
    _check_tokenizer(str(tmp_path), DataReport(tokenizer_hashes={""}))
    _check_tokenizer("some/hub-name", DataReport(tokenizer_hashes={"0123"}))
    with pytest.raises(DataError, match=f"tokenizer 0123, .* has {own}"):
        _check_tokenizer(str(tmp_path), DataReport(tokenizer_hashes={"0123"}))
