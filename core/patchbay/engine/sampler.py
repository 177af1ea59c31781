"""The next token of every sequence, from its logits. Knows nothing of models.

What a sequence draws depends on its own seed and on how many it drew before, never on who else is in the batch.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from patchbay.engine.request import SamplingParams, TokenLogprob

# Below it logits divided by the temperature overflow fp32; sampling is greedy long before.
MIN_TEMPERATURE = 1e-5


@dataclass(slots=True)
class Draws:
    """What sampling one answer needs: the parameters, all its tokens so far, and numbers of its own."""

    params: SamplingParams
    prompt: Sequence[int]
    answer: list[int] = field(default_factory=list)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        seed = self.params.seed if self.params.seed is not None else secrets.randbits(63)
        self.generator = torch.Generator().manual_seed(seed)


def sample(logits: torch.Tensor, draws: Sequence[Draws]) -> list[TokenLogprob]:
    """One token a row of fp32 logits [rows, vocabulary], which are finite or -inf."""
    changed = logits
    if any(map(_is_adjusted, draws)):
        changed = torch.stack([_adjust(row, each) for row, each in zip(logits, draws, strict=True)])
    greedy = _likeliest(changed)
    tokens = [
        choice if each.params.temperature < MIN_TEMPERATURE else _draw(row, each)
        for row, each, choice in zip(changed, draws, greedy, strict=True)
    ]
    return [
        TokenLogprob(token, None) if each.params.logprobs is None else logprob_of(row, token, each.params.logprobs)
        for row, token, each in zip(logits, tokens, draws, strict=True)
    ]


def _likeliest(logits: torch.Tensor) -> list[int]:
    """The first of the largest of every row. numpy finds it in a tenth of the time that torch takes on a CPU."""
    found: list[int] = (logits.numpy() if logits.device.type == "cpu" else logits).argmax(-1).tolist()
    return found


def is_sound(logits: torch.Tensor) -> list[bool]:
    """Which rows somebody can sample from: -inf is how a model masks, anything else that is not finite an accident."""
    found: list[bool] = logits.amax(-1).isfinite().tolist()  # NaN is the largest of all
    return found


def logprob_of(logits: torch.Tensor, token: int, count: int) -> TokenLogprob:
    """Of one token under one row of logits, with the `count` likeliest."""
    logprobs = logits.log_softmax(-1)
    found = logprobs.topk(min(count, len(logprobs)))
    top = tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)


def _is_adjusted(draws: Draws) -> bool:
    params = draws.params
    penalised = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    return bool(penalised or params.logit_bias)


def _adjust(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Penalties and biases. A row that has none is handed on, not copied."""
    params = draws.params
    penalised = params.presence_penalty or params.frequency_penalty
    if not _is_adjusted(draws):
        return logits
    logits = logits.clone()
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*draws.prompt, *draws.answer}), dtype=torch.long, device=logits.device)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if penalised and draws.answer:
        counts = Counter(draws.answer)
        answer = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), device=logits.device)
        logits[answer] -= params.presence_penalty + params.frequency_penalty * times
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    return logits


def _draw(logits: torch.Tensor, draws: Draws) -> int:
    """By inverting the distribution function at one uniform number, so that a token costs one number whatever the
    vocabulary. In float64: a sum over a hundred thousand fp32 probabilities is off by more than the rarest of them.
    """
    params = draws.params
    number = torch.rand((), generator=draws.generator, dtype=torch.float64)
    probabilities = torch.softmax(logits.double() / params.temperature, dim=-1)
    order = None
    if params.top_k or params.top_p < 1 or params.min_p:
        probabilities, order = probabilities.sort(descending=True, stable=True)
        probabilities = _truncate(probabilities, params)
    sums = probabilities.cumsum(-1)
    place = int(torch.searchsorted(sums, number.to(sums) * sums[-1], right=True))
    # Rounding may put the number at the very end: the last token with a probability is meant.
    place = min(place, int(probabilities.nonzero()[-1]))
    return place if order is None else int(order[place])


def _truncate(probabilities: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Zeros what `top_k`, `min_p` and then `top_p` leave out of probabilities in falling order; the first stays."""
    kept = probabilities.clone()
    if params.min_p:
        kept[probabilities < params.min_p * probabilities[0]] = 0
    if params.top_k:
        kept[params.top_k :] = 0
    if params.top_p < 1:
        before = kept.cumsum(-1) - kept
        kept[before >= params.top_p * kept.sum()] = 0
    kept[0] = probabilities[0]
    return kept
