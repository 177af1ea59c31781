"""One answer under way: its tokens, how far the model has read them, and whether it is over.

Knows nothing of models and of other sequences.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any

from patchbay.engine.request import Request, TokenLogprob, Update
from patchbay.engine.sampler import Draws
from patchbay.engine.text import TextStream
from patchbay.errors import Cancelled, PatchbayError

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Sequence:
    """`place` is where its keys and values are, and None while it waits; `computed` how many tokens have theirs.
    `skipped`: how often a later one was let in before it. Times are on the clock of `time.monotonic`; `waited` is how
    long the last token took since the one before, or the first since the request came. `admitted`: when it got memory;
    `first`: when it had a token. `ended` is a finish reason, or "abort" where it was given up, or "error".
    """

    request: Request
    place: Any = None
    computed: int = 0
    skipped: int = 0
    is_over: bool = False
    has_failed: bool = False
    is_cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first: float | None = None
    told: float | None = None
    waited: float = 0.0
    over: float | None = None
    ended: str | None = None
    draws: Draws = field(init=False)
    _text: TextStream = field(init=False)
    _prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        self.draws = Draws(request.params, request.prompt)
        self._text = TextStream(request.tokenizer, request.context, request.params.stop)
        if self.wants_prompt:
            self._prompt_logprobs.append(TokenLogprob(request.prompt[0], None))

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
        now = time.monotonic()
        self.waited, self.told = now - (self.told or self.arrived), now
        self.first = self.first or now
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
            self._note("abort" if isinstance(error, Cancelled) else "error")
            self.has_failed = True
            self._send(Update(self.request.index, error=error))

    def _end(self, reason: str, text: str, found: TokenLogprob | None) -> None:
        text += self._text.finish()
        if self._text.stopped:
            reason = "stop"
        self._note(reason)
        new = () if found is None else (found,)
        self._tell(Update(self.request.index, text, tuple(each.token for each in new), new, finish_reason=reason))

    def _note(self, ended: str) -> None:
        self.is_over, self.ended, self.over = True, ended, time.monotonic()

    def _tell(self, update: Update) -> None:
        """Before anything else, the prompt's own probabilities, where they were asked for."""
        if self._prompt_logprobs:
            self._send(Update(self.request.index, prompt_logprobs=tuple(self._prompt_logprobs)))
            self._prompt_logprobs = []
        self._send(update)

    def _send(self, update: Update) -> None:
        """A sink that fails is one that nobody reads: it must not fail others."""
        try:
            self.request.sink(update)
        except Exception:
            logger.exception("an answer could not be told")
            self.is_cancelled = True

    @property
    def is_late(self) -> bool:
        return self.request.deadline is not None and time.monotonic() > self.request.deadline
