"""One answer under way: its tokens, how far the model has read them, and whether it is over.

Knows nothing of models and of other sequences.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any

from patchbay.engine.request import Request, TokenLogprob, Update
from patchbay.engine.sampler import Draws
from patchbay.engine.text import TextStream
from patchbay.errors import PatchbayError


@dataclass(slots=True, eq=False)
class Sequence:
    """`place` is where its keys and values are, and None while it waits; `computed` how many tokens have theirs.
    `skipped`: how often a later one was let in before it.
    """

    request: Request
    place: Any = None
    computed: int = 0
    skipped: int = 0
    is_over: bool = False
    has_failed: bool = False
    is_cancelled: bool = False
    draws: Draws = field(init=False)
    _text: TextStream = field(init=False)
    _prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        self.draws = Draws(request.params, request.prompt)
        self._text = TextStream(request.tokenizer, request.context, request.params.stop)

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt) + len(self.draws.answer)

    @property
    def num_reserved(self) -> int:
        """The most tokens that it will ever have."""
        return len(self.request.prompt) + self.request.params.max_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether the next forward pass is for one token, which gives another."""
        return self.computed == self.num_tokens - 1 and bool(self.draws.answer)

    @property
    def wants_prompt(self) -> bool:
        return self.request.params.prompt_logprobs is not None

    def next_tokens(self, limit: int) -> Tokens[int]:
        """At most `limit` tokens that have no keys yet."""
        end = min(self.num_tokens, self.computed + limit)
        prompt = self.request.prompt
        if self.computed >= len(prompt):
            return self.draws.answer[self.computed - len(prompt) : end - len(prompt)]
        return prompt[self.computed : end]  # no answer before the prompt is read

    def read(self, logprobs: Tokens[TokenLogprob] = ()) -> None:
        """Of prompt tokens, those after the ones just read."""
        self._prompt_logprobs.extend(logprobs)

    def accept(self, found: TokenLogprob) -> None:
        """The next token, told to whoever asked, with what it ends."""
        params, request = self.request.params, self.request
        self.draws.answer.append(found.token)
        ended = (found.token in request.ends and not params.ignore_eos) or found.token in params.stop_token_ids
        text = self._text.push(found.token)
        if ended or self._text.stopped:
            self._end("stop", text, found)
        elif len(self.draws.answer) >= params.max_tokens:
            self._end("length", text, found)
        else:
            self._tell(Update(request.index, text, (found.token,), (found,)))

    def end_without_answer(self) -> None:
        """Of a request for the prompt alone."""
        self._end("length", "", None)

    def fail(self, error: PatchbayError) -> None:
        if not self.is_over:
            self.is_over = self.has_failed = True
            self.request.sink(Update(self.request.index, error=error))

    def _end(self, reason: str, text: str, found: TokenLogprob | None) -> None:
        self.is_over = True
        text += self._text.finish()
        if self._text.stopped:
            reason = "stop"
        new = () if found is None else (found,)
        self._tell(Update(self.request.index, text, tuple(each.token for each in new), new, finish_reason=reason))

    def _tell(self, update: Update) -> None:
        """Before anything else, the prompt's own probabilities, where they were asked for."""
        if self.wants_prompt and self._prompt_logprobs:
            told = (TokenLogprob(self.request.prompt[0], None), *self._prompt_logprobs)
            self.request.sink(Update(self.request.index, prompt_logprobs=told))
            self._prompt_logprobs = []
        self.request.sink(update)

    @property
    def is_late(self) -> bool:
        return self.request.deadline is not None and time.monotonic() > self.request.deadline
