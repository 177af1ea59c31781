"""A model's head by itself: the model as it is, with what its encoder has already given in the encoder's place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


class Replay(nn.Module):
    """Stands where an encoder stands, and answers `output` whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


class Head:
    """What `model` does after its encoder: output matrix, scales, caps and all. Weights are the model's own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = copy.copy(model)
        self._model._modules = dict(model._modules)
        self._replay = self._model._modules[model.base_model_prefix] = Replay()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of last hidden states [rows, tokens, width]: [rows, tokens, vocabulary], in fp32."""
        self._replay.output = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
        try:
            found: torch.Tensor = self._model(input_ids=hidden.new_zeros(hidden.shape[:2], dtype=torch.long)).logits
        finally:
            self._replay.output = None
        return found.float()
