"""What somebody wants generated, and what they are told while it is. Knows nothing of how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from patchbay.engine.recipes import Ready
from patchbay.errors import PatchbayError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """OpenAI's names and meanings, and vLLM's where OpenAI has none.

    `temperature` 0 is greedy. `top_k` 0 is off. `repetition_penalty` counts prompt and answer; `presence_penalty` and
    `frequency_penalty` the answer. `logprobs`: how many of the likeliest tokens to tell of beside the chosen one, None
    for none at all; `prompt_logprobs` the same of the prompt's tokens.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def for_choice(self, number: int) -> SamplingParams:
        """Of the `number`-th answer to the same prompt: with a seed, another one."""
        return self if self.seed is None or not number else replace(self, seed=self.seed + number)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """log P of the token under the model as it is, before temperature and penalties; `top` likewise, likeliest first.

    None for a prompt's first token, which nothing predicts.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """What is new in one answer: text that no stop string can take back, tokens, and why it ended, once it has.

    `finish_reason` is "stop" or "length". With `error` the answer has failed, and nothing follows.
    """

    index: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None
    error: PatchbayError | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


Sink = Callable[[Update], None]


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to one prompt, whose tokens are checked already. `index` is the caller's, and comes back with every
    update. `context`: the prompt's last tokens, where the text goes on after them. `ends`: tokens that end a text.
    `deadline`: on the clock of `time.monotonic`.
    """

    index: int
    prompt: tuple[int, ...]
    params: SamplingParams
    ready: Ready
    tokenizer: PreTrainedTokenizerBase
    context: tuple[int, ...]
    ends: frozenset[int]
    sink: Sink
    deadline: float | None = None
