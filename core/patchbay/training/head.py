"""A head on an encoder that stays as it is: its features are computed once, and one linear layer is fitted to them.

Knows nothing of recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTForEEGClassification
from patchbay.training.windows import Batches

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 0.001)  # of the squared weights, on features of deviation 1
UNJUDGED = 0.1  # where no window is there to choose by
STEPS = 100
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def features(model: NeurIPTForEEGClassification, batches: Batches, rows: int = 32) -> Iterator[torch.Tensor]:
    """fp32 [some windows, width] of what the head reads, at most `rows` at a time."""
    model.train(False)
    for first in range(0, len(batches), rows):
        numbers = range(first, min(first + rows, len(batches)))
        batch = {name: tensor.to(model.device) for name, tensor in batches.of(numbers).items()}
        mask = batch.get("channel_mask")
        with torch.no_grad():
            encoded = model.neuript(batch["signal"], batch["positions"], mask)
            yield model.features(encoded.hidden_states, batch["lobes"], mask).float().cpu()


def fit_head(
    model: NeurIPTForEEGClassification,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Sets the head to the minimum of the balanced loss + s |W|^2 / 2, W of features of mean 0 and deviation 1; of
    several s that with the least loss in validation.

    `train` and `validation` are features [N, width] and classes [N]. Raises InputError for a head of two layers.
    """
    head = model.classifier
    if not isinstance(head, nn.Linear):
        raise InputError("a head with a hidden layer is not fitted alone: head_size must be 0", param="head_size")
    mean, deviation = train[0].double().mean(0), train[0].double().std(0).clamp_min(1e-6)
    judged = validation if len(validation[1]) else train
    scaled = [((rows.double() - mean) / deviation, classes) for rows, classes in (train, judged)]
    strengths = STRENGTHS if len(validation[1]) else (UNJUDGED,)
    tried = [_fitted(model.balanced_loss, head, scaled[0], strength) for strength in strengths]
    weight, bias = min(tried, key=lambda found: float(_loss(model.balanced_loss, found, scaled[1])))
    with torch.no_grad():
        head.weight.copy_(weight / deviation)
        head.bias.copy_(bias - (weight / deviation) @ mean)


def _fitted(
    loss: Loss, head: nn.Linear, train: tuple[torch.Tensor, torch.Tensor], strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.zeros(head.weight.shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(head.bias.shape, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        found = _loss(loss, (weight, bias), train) + strength * weight.square().sum() / 2
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _loss(loss: Loss, linear: Sequence[torch.Tensor], examples: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    rows, classes = examples
    return loss(nn.functional.linear(rows, linear[0], linear[1]), classes)
