"""Which of an answer's tokens make up a text of it.

Chat gives the log-probs of every sampled token: of the reasoning, of control tokens, of calls. The
Responses API gives those of the text alone. Tokens and text come at their own times, since a parser
may hold a text back, and a token may lie across two deltas.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from entrogate.wire.said import SaidToken


class TextTokens:
    """Gives each token out with the first text that holds some of its bytes."""

    __slots__ = ("_spoken", "_tokens")

    def __init__(self) -> None:
        self._tokens: list[SaidToken] = []
        self._spoken = 0  # bytes of the first token that an earlier text had

    def add(self, tokens: Iterable[SaidToken]) -> None:
        """Tokens in the order in which they were sampled."""
        self._tokens += tokens

    def take(self, text: str) -> list[SaidToken]:
        """The tokens of ``text``, which comes after what was taken before.

        Tokens before it belong to no text and are dropped. Where the text is not what the tokens
        spell (vLLM gives tokens of a resumed answer by their ids), all that have come are its.
        """
        raws = [token.raw for token in self._tokens]
        spelled, wanted = b"".join(raws), text.encode(errors="replace")
        ends = list(accumulate(map(len, raws)))
        start = self._find(spelled, wanted, ends)
        if start < 0:
            taken, self._tokens, self._spoken = self._tokens, [], 0
            return taken
        stop = start + len(wanted)
        first = next((i for i, end in enumerate(ends) if end > start), len(ends))
        last = next((i for i, end in enumerate(ends) if end >= stop), len(ends) - 1)
        taken = self._tokens[first : last + 1]
        if first == 0 and self._spoken:
            taken = taken[1:]  # given out with the text before
        whole = ends[last] == stop
        self._tokens = self._tokens[last + 1 if whole else last :]
        self._spoken = 0 if whole else stop - (ends[last - 1] if last else 0)
        return taken

    def _find(self, spelled: bytes, wanted: bytes, ends: list[int]) -> int:
        """Where the text begins: at a token if one does, so that no control token is taken in."""
        for start in (self._spoken, *ends[:-1]):
            if start >= self._spoken and spelled.startswith(wanted, start):
                return start
        return spelled.find(wanted, self._spoken)
