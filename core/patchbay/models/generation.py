"""Text from a causal or sequence-to-sequence model, one prompt at a time, by transformers' own `generate`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.errors import InputError
from patchbay.models.inputs import MAX_TOKENS, Batch, vocabulary_of
from patchbay.models.outputs import check_finite

# Below it logits divided by the temperature overflow fp32; sampling is greedy long before.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """OpenAI's names and meanings. `temperature` 0 is greedy."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    completion_tokens: int


@torch.inference_mode()
def complete(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[int],
    params: SamplingParams,
    ends: Sequence[Event] = (),
) -> Completion:
    """Stops at the next token once one of `ends` is set.

    Raises InputError for a prompt that is empty, out of the vocabulary, or does not leave room for `max_tokens`.
    """
    ids = _prompt_ids(backbone, tokenizer, prompt, params)
    tokens = torch.tensor([ids], device=backbone.device)
    config = _generation_config(backbone, tokenizer, params)
    skipped = len(ids) if backbone.task is Task.CAUSAL_LM else 1  # the decoder's start token
    with torch.random.fork_rng(devices=[] if backbone.device.type == "cpu" else [backbone.device]):
        # Without a seed too: the state that fork_rng puts back would make every unseeded request the same.
        torch.manual_seed(params.seed if params.seed is not None else secrets.randbits(63))
        output = backbone.model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=config,
            logits_processor=LogitsProcessorList([_RefuseNonFinite()]),
            stopping_criteria=StoppingCriteriaList([_StopAt(tokenizer, params.stop, skipped, ends)]),
        )
    new = output[0, skipped:].tolist()
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    cut = min((text.find(stop) for stop in params.stop if stop in text), default=-1)
    stopped = cut >= 0 or len(new) < params.max_tokens or (bool(new) and new[-1] in _ends(backbone, tokenizer))
    return Completion(text[:cut] if cut >= 0 else text, "stop" if stopped else "length", len(ids), len(new))


@torch.no_grad()
def with_answers(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, batch: Batch, max_tokens: int) -> Batch:
    """A batch of a sequence-to-sequence model with what it answers greedily, to be compared token by token.

    `decoder_input_ids` [inputs, at most max_tokens] start with the decoder's start token; `decoder_attention_mask` is 1
    where the next token belongs to the answer, its end included. Not by `generate`: a folder's generation config may
    ask it for beams, for lengths and for other outputs, and greedy is what is meant here.
    """
    model, mask = backbone.model, batch["attention_mask"]
    encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
    answers = torch.full((len(mask), 1), _start_token(backbone), device=mask.device)
    ends = torch.tensor(sorted(_ends(backbone, tokenizer)), dtype=answers.dtype, device=mask.device)
    ended = torch.zeros_like(answers, dtype=torch.bool)
    most = min(max_tokens, backbone.max_positions or max_tokens)
    while answers.shape[1] < most and not bool(ended[:, -1].all()):
        logits = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=answers).logits
        likeliest = logits[:, -1:].argmax(-1)
        answers = torch.cat([answers, likeliest], 1)
        ended = torch.cat([ended, ended[:, -1:] | torch.isin(likeliest, ends)], 1)
    return {**batch, "decoder_input_ids": answers, "decoder_attention_mask": (~ended).long()}


def _start_token(backbone: Backbone) -> int:
    configs = (backbone.model.generation_config, backbone.architecture.config)
    found = [getattr(c, name, None) for name in ("decoder_start_token_id", "bos_token_id") for c in configs]
    return int(next((token for token in found if token is not None), 0))


def any_set(ends: Sequence[Event]) -> bool:
    return any(end.is_set() for end in ends)


class _RefuseNonFinite(LogitsProcessor):
    """Weights that a recipe drove out of range would otherwise give any token at all. -inf is how a model masks."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        check_finite(not bool((scores.isnan() | scores.isposinf()).any()))
        return scores


class _StopAt(StoppingCriteria):
    """Stops once the new text holds a stop string. Looks at the text: transformers' own criterion reads the vocabulary
    and fails on tokenizers of whole words.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], skipped: int, ends: Sequence[Event]
    ) -> None:
        self.tokenizer, self.stop, self.skipped, self.ends = tokenizer, stop, skipped, ends

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **more: object) -> torch.BoolTensor:
        found = any_set(self.ends)
        if self.stop and not found:
            text = str(self.tokenizer.decode(input_ids[0, self.skipped :], skip_special_tokens=True))
            found = any(stop in text for stop in self.stop)
        return torch.BoolTensor([found]).to(input_ids.device)  # type: ignore[return-value]


def _prompt_ids(
    backbone: Backbone, tokenizer: PreTrainedTokenizerBase, prompt: str | list[int], params: SamplingParams
) -> list[int]:
    ids: list[int] = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    vocabulary = vocabulary_of(backbone)
    if not ids:
        raise InputError("the prompt has no tokens", param="prompt")
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise InputError(f"a token id is outside the vocabulary of {vocabulary}", param="prompt")
    limit = backbone.max_positions or MAX_TOKENS
    if len(ids) + params.max_tokens > limit:
        raise InputError(
            f"the prompt's {len(ids)} tokens and max_tokens {params.max_tokens} exceed the {limit} of this model",
            param="prompt",
        )
    return ids


def _generation_config(
    backbone: Backbone, tokenizer: PreTrainedTokenizerBase, params: SamplingParams
) -> GenerationConfig:
    greedy = params.temperature < MIN_TEMPERATURE
    sampling = {} if greedy else {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
    start = getattr(backbone.architecture.config, "decoder_start_token_id", None)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=params.max_tokens,
        do_sample=not greedy,
        eos_token_id=sorted(_ends(backbone, tokenizer)) or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        decoder_start_token_id=start,
        **sampling,
    )


def _ends(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text: the checkpoint's generation config knows best, then the tokenizer."""
    known = getattr(backbone.model.generation_config, "eos_token_id", None)
    if known is None:
        known = tokenizer.eos_token_id
    ends = {known} if isinstance(known, int) else set(known or ())
    return {end for end in ends if end < vocabulary_of(backbone)}
