"""A model in two parts: its encoder, and what it makes of what the encoder gave.

The second part is the model as it is, with what its encoder has already given in the encoder's place. Knows nothing of
batches of several requests.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import ModelOutput

Tensors = Mapping[str, torch.Tensor]


class Readout(Protocol):
    """One answer a row, made of what an encoder gives. `encoder` is None where a model has none to take out."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def encoder(self) -> nn.Module | None: ...

    def whole(self, inputs: Tensors) -> torch.Tensor:
        """fp32 [rows, width], of the whole model."""

    def after(self, output: ModelOutput, inputs: Tensors) -> torch.Tensor:
        """The same, where `output` is what the encoder gave for `inputs`."""


class Replay(nn.Module):
    """Stands where an encoder stands, and answers `output` whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


class Head:
    """What `model` does after its encoder: output matrix, scales, caps and all. Weights are the model's own.

    For one thread at a time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = copy.copy(model)
        self._model._modules = dict(model._modules)
        self._replay = self._model._modules[model.base_model_prefix] = Replay()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of last hidden states [rows, tokens, width]: [rows, tokens, vocabulary], in fp32."""
        ids = hidden.new_zeros(hidden.shape[:2], dtype=torch.long)
        return self.after(BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden), {"input_ids": ids})

    def after(self, output: ModelOutput, inputs: Tensors) -> torch.Tensor:
        """The model's fp32 logits of `inputs`, for which its encoder gave `output`."""
        self._replay.output = output
        try:
            found: torch.Tensor = self._model(**inputs).logits
        finally:
            self._replay.output = None
        return found.float()


def encoder_of(model: PreTrainedModel) -> nn.Module | None:
    """The part that `Head` replaces; None where the model has no such part of its own."""
    return model._modules.get(model.base_model_prefix)
