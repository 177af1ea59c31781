"""How a generating model's texts begin and end, and what it answers greedily. Knows nothing of requests."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from patchbay.backbone import Backbone
from patchbay.models.inputs import Batch, vocabulary_of


@torch.no_grad()
def with_answers(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, batch: Batch, max_tokens: int) -> Batch:
    """A batch of a sequence-to-sequence model with what it answers greedily, to be compared token by token.

    `decoder_input_ids` [inputs, at most max_tokens] start with the decoder's start token; `decoder_attention_mask` is 1
    where the next token belongs to the answer, its end included. Not by `generate`: a folder's generation config may
    ask it for beams, for lengths and for other outputs, and greedy is what is meant here.
    """
    model, mask = backbone.model, batch["attention_mask"]
    encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
    answers = torch.full((len(mask), 1), start_token(backbone), device=mask.device)
    stops = sorted(end_tokens(backbone, tokenizer, vocabulary_of(backbone)))
    ends = torch.tensor(stops, dtype=answers.dtype, device=mask.device)
    ended = torch.zeros_like(answers, dtype=torch.bool)
    most = min(max_tokens, backbone.max_positions or max_tokens)
    while answers.shape[1] < most and not bool(ended[:, -1].all()):
        logits = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=answers).logits
        likeliest = logits[:, -1:].argmax(-1)
        answers = torch.cat([answers, likeliest], 1)
        ended = torch.cat([ended, ended[:, -1:] | torch.isin(likeliest, ends)], 1)
    return {**batch, "decoder_input_ids": answers, "decoder_attention_mask": (~ended).long()}


def start_token(backbone: Backbone) -> int:
    """What a sequence-to-sequence model's decoder starts with."""
    configs = (backbone.model.generation_config, backbone.architecture.config)
    found = [getattr(c, name, None) for name in ("decoder_start_token_id", "bos_token_id") for c in configs]
    return int(next((token for token in found if token is not None), 0))


def end_tokens(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> set[int]:
    """Tokens below `vocabulary` that end a text: the checkpoint's generation config knows best, then the tokenizer."""
    known = getattr(backbone.model.generation_config, "eos_token_id", None)
    if known is None:
        known = tokenizer.eos_token_id
    ends = {known} if isinstance(known, int) else set(known or ())
    return {end for end in ends if end < vocabulary}
