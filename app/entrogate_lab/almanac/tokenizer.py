# pyright: reportUnknownMemberType=false
"""The tokenizer: byte-level BPE in which every name is one token and numbers go in pairs of digits.

A space before a capital letter or a digit belongs to the word before it, so that a name is the same
token in a sentence, in the JSON of a call and in an answer.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from entrogate_lab.almanac.transcript import ADDED_TOKENS, CHAT_TEMPLATE, END, PAD
from entrogate_lab.almanac.words import NOUNS, Words

_PATTERN = r"[0-9]{1,2}| ?[A-Z][a-z]*| ?[a-z_]+(?: (?=[A-Z0-9]))?|[^A-Za-z0-9]+"
_SPECIAL = ADDED_TOKENS[:3]
_NAMED_AT_LEAST = 5


def train_tokenizer(
    texts: Iterable[str], words: Words, *, added: Sequence[str] = ADDED_TOKENS
) -> Tokenizer:
    """Train on `texts` until every word of the world is one token, as each of `added` is."""
    pool = single_tokens(words)
    named = [f"A{word}" if word.startswith(" ") else word for word in pool]
    joined = list(texts) + named * _NAMED_AT_LEAST
    for size in range(1152, 4096, 64):
        tokenizer = _train(joined, size - len(added), added)
        if all(len(tokenizer.encode(word).ids) == 1 for word in pool):
            return tokenizer
    raise ValueError("no vocabulary below 4096 holds every word of the world as one token")


def single_tokens(words: Words) -> list[str]:
    """Every name as it occurs in text: second words of names with the space before them."""
    seconds = {*words.last, *NOUNS}
    return [f" {word}" if word in seconds else word for word in words.everything()]


def padded_vocabulary(tokenizer: Tokenizer) -> int:
    """The model's vocabulary size: a multiple of 64 with at least one id that no text produces."""
    return (tokenizer.get_vocab_size() // 64 + 1) * 64


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` with the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _train(texts: list[str], size: int, added: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(
        [AddedToken(text, special=text in _SPECIAL, normalized=False) for text in added]
    )
    return tokenizer
