"""One unit vector an input, from a plain encoder: mean over tokens for text, the pooled output for images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from patchbay.backbone import Backbone
from patchbay.models.inputs import Batch, num_tokens
from patchbay.models.outputs import check_finite
from patchbay.models.replay import Tensors


@dataclass(frozen=True, slots=True)
class Embedded:
    """`vectors`: fp32 [inputs, width] on the CPU, each of length 1. `num_tokens` is 0 for images."""

    vectors: torch.Tensor
    num_tokens: int


@dataclass(frozen=True, slots=True)
class UnitVectors:
    """A plain encoder's, fp32 [inputs, width]; not finite where the weights are out of range.

    Text is pooled as sentence-transformers does by default: the mean of the last hidden states under the attention
    mask.
    """

    model: PreTrainedModel

    @property
    def encoder(self) -> PreTrainedModel:
        return self.model

    def whole(self, inputs: Tensors) -> torch.Tensor:
        return self.after(self.model(**inputs), inputs)

    def after(self, output: ModelOutput, inputs: Tensors) -> torch.Tensor:
        return torch.nn.functional.normalize(_pooled(output, inputs), dim=-1)


def embedded(vectors: torch.Tensor, inputs: Batch) -> Embedded:
    """The answer to `inputs`. Raises NonFiniteValue where the weights drove the vectors out of range."""
    check_finite(bool(torch.isfinite(vectors).all()))
    return Embedded(vectors.cpu(), num_tokens(inputs))


def unit_vectors(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """fp32 [inputs, width] of one forward pass, differentiable; not finite where the weights are out of range."""
    return UnitVectors(backbone.model).whole(batch)


def _pooled(output: ModelOutput, inputs: Tensors) -> torch.Tensor:
    hidden: torch.Tensor = output.last_hidden_state  # type: ignore[attr-defined]
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1)
    pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
    return (hidden[:, 0] if pooled is None else pooled).float()
