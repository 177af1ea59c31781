"""One unit vector an input, from a plain encoder: mean over tokens for text, the pooled output for images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchbay.backbone import Backbone
from patchbay.models.inputs import Batch


@dataclass(frozen=True, slots=True)
class Embedded:
    """`vectors`: fp32 [inputs, width] on the CPU, each of length 1. `num_tokens` is 0 for images."""

    vectors: torch.Tensor
    num_tokens: int


@torch.inference_mode()
def embed(backbone: Backbone, batch: Batch) -> Embedded:
    """The embeddings of one batch.

    Text is pooled as sentence-transformers does by default: the mean of the last hidden states under the attention
    mask.
    """
    output = backbone.model(**batch)
    if "attention_mask" in batch:
        mask = batch["attention_mask"].unsqueeze(-1).float()
        pooled = (output.last_hidden_state.float() * mask).sum(1) / mask.sum(1).clamp(min=1)
    elif getattr(output, "pooler_output", None) is not None:
        pooled = output.pooler_output.float()
    else:
        pooled = output.last_hidden_state[:, 0].float()
    num_tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else 0
    return Embedded(torch.nn.functional.normalize(pooled, dim=-1).cpu(), num_tokens)
