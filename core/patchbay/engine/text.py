"""Text as its tokens come: never half a character, never a beginning of what a stop string would take back.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

CONTEXT = 5  # tokens of the prompt: a tokenizer may write a token differently at a text's start
_HALF = "�"  # what a tokenizer writes for bytes that are no character yet


class TextStream:
    """The answer to `prompt`, so that the prompt's text and this one's are the whole text. Ends where the first of
    `stop` is complete, which is no part of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        special = set(tokenizer.all_special_ids)  # no text, wherever they stand: bytes around them are one character
        last = islice((token for token in reversed(prompt) if token not in special), CONTEXT)
        self._tokens = [*last][::-1]
        self._shown, self._read = 0, len(self._tokens)  # where the window starts, and what of it is text already
        self._held = ""  # text that may turn out to begin a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now."""
        self._tokens.append(token)
        return self._take(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """What is left when no more tokens come."""
        return "" if self.stopped else self._take(self._decoded(final=True), final=True)

    def _decoded(self, *, final: bool) -> str:
        window = self._tokens[self._shown :]
        known = self._decode(window[: self._read - self._shown])
        text = self._decode(window)
        if known.endswith(_HALF):  # the prompt ends within a character, which may be whole now
            known = commonprefix([known, text])
        if not final and (len(text) <= len(known) or text.endswith(_HALF)):
            return ""
        self._shown, self._read = self._read, len(self._tokens)
        return text[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _take(self, new: str, *, final: bool) -> str:
        text = self._held + new
        # The first that is complete, the longest of those: so it is the same one whatever tokens the text comes in.
        found = [(place + len(stop), place) for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that is a beginning of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
