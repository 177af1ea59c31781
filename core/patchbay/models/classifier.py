"""Labels and probabilities from a model that is ready: patched or not is somebody else's business."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from patchbay.errors import UnsupportedTask
from patchbay.models.heads import HeadModel
from patchbay.models.outputs import check_finite
from patchbay.models.replay import Head, Tensors, encoder_of


@dataclass(frozen=True, slots=True)
class Classification:
    """`probabilities` in the order of the head's labels; they sum to 1 unless the head is multi-label."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Logits:
    """A classifier's, fp32 [inputs, labels]."""

    model: PreTrainedModel

    @property
    def encoder(self) -> nn.Module | None:
        return encoder_of(self.model)

    def whole(self, inputs: Tensors) -> torch.Tensor:
        logits: torch.Tensor = self.model(**inputs).logits
        return logits.float()

    def after(self, output: ModelOutput, inputs: Tensors) -> torch.Tensor:
        return self._head.after(output, inputs)

    @cached_property
    def _head(self) -> Head:
        return Head(self.model)


def check_classifier(head: HeadModel) -> None:
    """Raises UnsupportedTask for a regression head."""
    config = head.model.config
    if config.num_labels == 1 or config.problem_type == "regression":
        raise UnsupportedTask("this head is a regression, not a classifier", param="model")


def classifications(head: HeadModel, logits: torch.Tensor) -> list[Classification]:
    """softmax(logits) in fp32, of logits [inputs, labels]; sigmoid for a multi-label head.

    Raises NonFiniteValue where the weights drive the logits out of range.
    """
    check_finite(bool(torch.isfinite(logits).all()))
    multi_label = head.model.config.problem_type == "multi_label_classification"
    probabilities = torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=-1)
    return [
        Classification(head.labels[int(row.argmax())], dict(zip(head.labels, row.tolist(), strict=True)))
        for row in probabilities.cpu()
    ]
