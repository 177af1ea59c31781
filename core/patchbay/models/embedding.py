"""One unit vector an input, from a plain encoder: mean over tokens for text, the pooled output for images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchbay.backbone import Backbone
from patchbay.models.inputs import MAX_BATCH, Batch, parts
from patchbay.models.outputs import check_finite


@dataclass(frozen=True, slots=True)
class Embedded:
    """`vectors`: fp32 [inputs, width] on the CPU, each of length 1. `num_tokens` is 0 for images."""

    vectors: torch.Tensor
    num_tokens: int


@torch.inference_mode()
def embed(backbone: Backbone, batch: Batch) -> Embedded:
    """The embeddings of one batch.

    Text is pooled as sentence-transformers does by default: the mean of the last hidden states under the attention
    mask. Raises NonFiniteValue where the weights drive the output out of range.
    """
    vectors = torch.cat([unit_vectors(backbone, part) for part in parts(batch, MAX_BATCH)])
    check_finite(bool(torch.isfinite(vectors).all()))
    num_tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else 0
    return Embedded(vectors.cpu(), num_tokens)


def unit_vectors(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """fp32 [inputs, width] of one forward pass, differentiable; not finite where the weights are out of range."""
    return torch.nn.functional.normalize(_pooled(backbone, batch), dim=-1)


def _pooled(backbone: Backbone, batch: Batch) -> torch.Tensor:
    output = backbone.model(**batch)
    if "attention_mask" in batch:
        mask = batch["attention_mask"].unsqueeze(-1).float()
        summed: torch.Tensor = (output.last_hidden_state.float() * mask).sum(1)
        return summed / mask.sum(1).clamp(min=1)
    pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
    return (output.last_hidden_state[:, 0] if pooled is None else pooled).float()
