"""Labels and probabilities from a model that is ready: patched or not is somebody else's business."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchbay.errors import UnsupportedTask
from patchbay.models.heads import HeadModel
from patchbay.models.inputs import MAX_BATCH, Batch, parts
from patchbay.models.outputs import check_finite


@dataclass(frozen=True, slots=True)
class Classification:
    """`probabilities` in the order of the head's labels; they sum to 1 unless the head is multi-label."""

    label: str
    probabilities: dict[str, float]


@torch.inference_mode()
def classify(head: HeadModel, batch: Batch) -> list[Classification]:
    """softmax(logits) in fp32; sigmoid for a multi-label head.

    Raises UnsupportedTask for a regression head, NonFiniteValue where the weights drive the logits out of range.
    """
    config = head.model.config
    if config.num_labels == 1 or config.problem_type == "regression":
        raise UnsupportedTask("this head is a regression, not a classifier", param="model")
    logits = torch.cat([head.model(**part).logits.float() for part in parts(batch, MAX_BATCH)])
    check_finite(bool(torch.isfinite(logits).all()))
    multi_label = config.problem_type == "multi_label_classification"
    probabilities = torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=-1)
    return [
        Classification(head.labels[int(row.argmax())], dict(zip(head.labels, row.tolist(), strict=True)))
        for row in probabilities.cpu()
    ]
