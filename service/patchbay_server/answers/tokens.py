"""The text of single tokens, for those who want to know how likely each was. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from patchbay.engine.request import TokenLogprob
from patchbay.engine.text import CONTEXT, TextStream

LEAST = -9999.0  # in place of minus infinity, which JSON cannot write: OpenAI's own value
_HALF = "\ufffd"  # what a tokenizer writes for bytes that are no character yet


def at_least(logprob: float) -> float:
    return max(logprob, LEAST)


def bytes_of(text: str) -> list[int] | None:
    """None for a token that is part of a character: no text says which."""
    return None if _HALF in text else list(text.encode())


class TokenTexts:
    """The tokens of one text in their order, from after `before` on. `offset` is how much text has come so far."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int], offset: int = 0) -> None:
        self.offset = offset
        self._tokenizer = tokenizer
        self._last = list(before[-CONTEXT:])
        self._stream = TextStream(tokenizer, before, ())

    def show(self, token: int) -> str:
        """The token as it is written here, blank before it and all; special ones by their names."""
        known, text = self._decode(self._last), self._decode([*self._last, token])
        return text[len(known) :] if text.startswith(known) else self._decode([token])

    def push(self, token: int) -> None:
        """Goes on to what comes after the token."""
        self.offset += len(self._stream.push(token))
        self._last = [*self._last, token][-CONTEXT:]

    def top(self, found: TokenLogprob) -> list[tuple[str, float]]:
        """The likeliest tokens in the place of this one."""
        return [(self.show(token), at_least(logprob)) for token, logprob in found.top]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))
