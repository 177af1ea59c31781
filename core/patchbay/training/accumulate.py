"""The gradient of a batch that is worked through some windows at a time, so that memory does not grow with the batch.

It is the whole batch's, up to rounding and to which random numbers fall where. Knows nothing of models and of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Usages = tuple[torch.Tensor, ...]  # what experts get, of one layer each


class Output(Protocol):
    """`loss` of some rows: the mean of their own, and `auxiliary_loss`, which is of the whole batch, times a weight."""

    loss: torch.Tensor | None
    auxiliary_loss: torch.Tensor | None


def parts_of(count: int, rows: int) -> list[slice]:
    """Of `count` windows at most `rows` at a time, as evenly as they go."""
    parts = -(-count // rows)
    return [slice(count * number // parts, count * (number + 1) // parts) for number in range(parts)]


def accumulate(
    parts: Sequence[slice],
    shares: Sequence[float],
    usages_of: Callable[[slice], Usages | None],
    output_of: Callable[[slice, Usages | None], Output],
    weight: float,
    seed_of: Callable[[int], int],
) -> float:
    """Adds the gradient of sum_m share_m own_m + weight auxiliary to `.grad`, and returns that loss.

    The auxiliary loss is of sums over the batch (CV^2), not a mean over rows. So where there are several parts, what
    experts get of each is found first, without gradients; then each part's loss is that of its own sums plus the
    others'. The gradients of these add up to the batch's. `seed_of` a part's number: both times with the same dropout.
    """
    found: list[Usages] = []
    if len(parts) > 1:
        with torch.no_grad():
            for number, part in enumerate(parts):
                torch.manual_seed(seed_of(number))
                found.append(usages_of(part) or ())
    total = 0.0
    for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
        torch.manual_seed(seed_of(number))
        output = output_of(part, _others(found, number))
        assert output.loss is not None
        loss = share * output.loss
        total += float(loss.detach())
        if output.auxiliary_loss is not None:
            loss = loss + (1 - share) * weight * output.auxiliary_loss
        loss.backward()  # type: ignore[no-untyped-call]
    return total


def _others(found: Sequence[Usages], number: int) -> Usages | None:
    """The sum over all parts but one; None where there are none."""
    others = [usages for place, usages in enumerate(found) if place != number]
    return tuple(torch.stack(layer).sum(0) for layer in zip(*others, strict=True)) if others else None


def seed_of(seed: int, number: int, part: int = 0) -> int:
    """Of an epoch, or of a part of a step: apart from its neighbours' and from those of other runs, in the last 32 bits
    too, which are all that generators on a CPU look at.
    """
    return (seed * 1_000_003 + number + part * 15_485_863) % (1 << 62)
