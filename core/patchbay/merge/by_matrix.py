"""Methods that see one matrix of all terms at a time: neurons in front, whatever the layout on disk is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from patchbay.merge.consensus import weighted_sum
from patchbay.merge.stack import Stack, Stacks
from patchbay.merge.weighted import weighted

Combine = Callable[[torch.Tensor], torch.Tensor]


def by_matrix(stacks: Stacks, combine: Combine) -> Iterator[tuple[str, torch.Tensor]]:
    """`combine` maps weighted differences, float64 [T, out, in], to the merged [out, in].

    As in the reference code of these methods, other tensors are the mean of the terms, and so are vocabulary
    embeddings, of whose rows most tasks change few: sum_t w_t tau_t / T.
    """
    for stack in stacks:
        merged = _merged(stack, combine) if _is_for(stack) else _mean(stack)
        yield stack.name, merged.float()


def _is_for(stack: Stack) -> bool:
    return stack.is_matrix and not stack.spec.is_vocabulary and stack.differences.dim() > 2


def _mean(stack: Stack) -> torch.Tensor:
    return weighted_sum(stack.differences, stack.weights) / len(stack.weights)


def _merged(stack: Stack, combine: Combine) -> torch.Tensor:
    axis = stack.spec.neuron_axis
    assert axis is not None
    in_front = weighted(stack, torch.float64).movedim(axis + 1, 1)
    merged = combine(in_front.flatten(2))
    return merged.reshape(in_front.shape[1:]).movedim(0, axis)
