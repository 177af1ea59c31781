"""Prompts made into requests, and updates into answers. Knows nothing of when and how they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Event

from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.engine.recipes import Ready
from patchbay.engine.request import Request, SamplingParams, Sink, TokenLogprob, Update
from patchbay.errors import InputError, PatchbayError
from patchbay.models.generation import end_tokens
from patchbay.models.inputs import MAX_TOKENS, Inputs

Prompt = str | Sequence[int]


@dataclass(slots=True)
class Answer:
    """One answer as far as it is known; whole once `finish_reason` or `error` is there."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None
    error: PatchbayError | None = None

    def add(self, update: Update) -> None:
        self.text += update.text
        self.tokens.extend(update.tokens)
        self.logprobs.extend(update.logprobs)
        self.prompt_logprobs = update.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = update.finish_reason or self.finish_reason
        self.error = update.error or self.error


class Collector:
    """A sink for `count` answers; `done` is set when the last of them is over."""

    def __init__(self, count: int) -> None:
        self.answers = [Answer() for _ in range(count)]
        self.done = Event()
        self._left = count

    def __call__(self, update: Update) -> None:
        self.answers[update.index].add(update)
        self._left -= update.is_last
        if not self._left:
            self.done.set()

    def result(self) -> list[Answer]:
        """Waits. Raises the first answer's error that has one."""
        self.done.wait()
        for answer in self.answers:
            if answer.error is not None:
                raise answer.error
        return self.answers


@dataclass(frozen=True, slots=True)
class Texts:
    """Makes requests for one backbone. `max_tokens`: the most that one sequence has memory for."""

    backbone: Backbone
    inputs: Inputs
    max_tokens: int

    def encode(self, prompt: Prompt, ready: Ready) -> tuple[int, ...]:
        """Raises InputError for a prompt that is empty or out of the vocabulary."""
        vocabulary = self.inputs.vocabulary + ready.num_appended
        ids = self.inputs.encode(prompt, ready.tokens) if isinstance(prompt, str) else tuple(prompt)
        if not ids:
            raise InputError("the prompt has no tokens", param="prompt")
        for place, token in enumerate(ids):
            if not 0 <= token < vocabulary:
                shown = str(token)[:20]
                raise InputError(
                    f"token {place} of the prompt, {shown}, is outside the vocabulary of {vocabulary}", param="prompt"
                )
        return ids

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens an answer to the prompt can have."""
        return max(0, min(self._positions, self.max_tokens) - len(prompt))

    def requests(
        self,
        ready: Ready,
        prompts: Iterable[tuple[int, ...]],
        params: SamplingParams,
        sink: Sink,
        *,
        n: int = 1,
        deadline: float | None = None,
    ) -> list[Request]:
        """`n` answers to every prompt, numbered in this order; the seed of a prompt's k-th is `params.seed` + k.

        Raises InputError where a prompt and `max_tokens` are too long, a token is outside the vocabulary, or the model
        cannot tell of prompts.
        """
        tokenizer = self.inputs.tokenizer_with(ready.tokens)
        self._check_tokens(params, self.inputs.vocabulary + ready.num_appended)
        if params.prompt_logprobs is not None and self.backbone.task is Task.SEQ2SEQ_LM:
            raise InputError("an encoder's prompt has no probabilities: leave 'prompt_logprobs' out", param="prompt")
        ends = frozenset(end_tokens(self.backbone, tokenizer, self.inputs.vocabulary + ready.num_appended))
        found: list[Request] = []
        for prompt in prompts:
            self._check_length(prompt, params)
            for choice in range(n):
                own = params.for_choice(choice)
                context = self._context(prompt)
                found.append(Request(len(found), prompt, own, ready, tokenizer, context, ends, sink, deadline))
        return found

    def _context(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """A decoder of its own starts a text of its own."""
        return () if self.backbone.task is Task.SEQ2SEQ_LM else prompt

    @property
    def _positions(self) -> int:
        return self.backbone.max_positions or MAX_TOKENS

    def _check_length(self, prompt: Sequence[int], params: SamplingParams) -> None:
        total = len(prompt) + params.max_tokens
        if total > self._positions:
            raise InputError(
                f"the prompt's {len(prompt)} tokens and max_tokens {params.max_tokens} exceed the {self._positions} of "
                "this model",
                param="prompt",
            )
        if total > self.max_tokens:
            raise InputError(
                f"the prompt's {len(prompt)} tokens and max_tokens {params.max_tokens} exceed the {self.max_tokens} "
                "that this server has memory for: start it with more --kv-bytes",
                param="prompt",
            )

    def _check_tokens(self, params: SamplingParams, vocabulary: int) -> None:
        for name, tokens in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token in tokens:
                if not 0 <= token < vocabulary:
                    raise InputError(f"{name}: {token} is outside the vocabulary of {vocabulary}", param=name)
