"""sum_t C_t D_t of one tensor: sparse where every term is, with one coefficient a term or one for each neuron.

What a patch of the resident model and a merge on disk have in common. Knows nothing of where the result goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from patchbay.delta import Delta
from patchbay.delta.delta import apply_difference
from patchbay.merge.matrix import MatrixPlan

Part = tuple[torch.Tensor | None, torch.Tensor]  # positions in a flattened tensor, or None for all; values there


def planned_difference(name: str, plan: MatrixPlan, deltas: Sequence[Delta], tensor: torch.Tensor, axis: int) -> Part:
    """sum_t C_t D_t in fp32 on the device of the base's `tensor`: where sparse terms keep entries, or whole."""
    parts = _scaled_parts(name, plan, deltas, tensor, axis)
    # Whole differences are summed one by one: a list of them would be as many tensors.
    several = sum(name in delta for delta in deltas) > 1
    if several and any(name in delta and not delta.is_sparse(name) for delta in deltas):
        return None, _sum(parts, tensor)
    return _joined(list(parts), tensor)


def planned_matrix(
    name: str, plan: MatrixPlan, deltas: Sequence[Delta], tensor: torch.Tensor, axis: int, dtype: torch.dtype
) -> torch.Tensor:
    """round(a W0 + sum_t C_t D_t), a new tensor. Entries that no sparse term keeps have the base's bits."""
    if not bool((plan.base_scale == 1).all()):
        return planned_tensor(name, plan, deltas, tensor, axis, dtype)
    positions, difference = planned_difference(name, plan, deltas, tensor, axis)
    if positions is None:
        return apply_difference(tensor, difference, dtype)
    merged = tensor.to(dtype).clone().contiguous()
    merged.view(-1)[positions] = apply_difference(tensor.reshape(-1)[positions], difference, dtype)
    return merged


def planned_tensor(
    name: str, plan: MatrixPlan, deltas: Sequence[Delta], tensor: torch.Tensor, axis: int, dtype: torch.dtype
) -> torch.Tensor:
    """round(a W0 + sum_t C_t D_t), computed in fp32 and rounded once."""
    scale = _per_neuron(plan.base_scale.to(tensor.device), tensor, axis)
    difference = _sum(_scaled_parts(name, plan, deltas, tensor, axis), tensor).view(tensor.shape)
    return (tensor.to(torch.float32) * scale + difference).to(dtype)


def _joined(parts: Sequence[Part], tensor: torch.Tensor) -> Part:
    """One part as it is; of several, the positions that any touches, and the sum there."""
    if len(parts) == 1:
        return parts[0]
    positions = torch.unique(torch.cat([listed for listed, _ in parts if listed is not None]))
    return positions, _sum(parts, tensor)[positions]


def _sum(parts: Iterable[Part], tensor: torch.Tensor) -> torch.Tensor:
    """Dense and flat: one tensor's worth of scratch."""
    total = torch.zeros(tensor.numel(), device=tensor.device)
    for positions, values in parts:
        if positions is None:
            total += values
        else:
            total[positions] += values
    return total


def _scaled_parts(
    name: str, plan: MatrixPlan, deltas: Sequence[Delta], tensor: torch.Tensor, axis: int
) -> Iterator[Part]:
    for coefficients, delta in zip(plan.coefficients.to(tensor.device), deltas, strict=True):
        if delta.is_sparse(name):
            rows = delta.matrices[name].unpacked()
            positions, values = rows.positions.to(tensor.device, torch.int64), rows.values.to(tensor.device)
            yield positions, values * _at_positions(coefficients, positions, tensor.shape, axis)
        elif name in delta:
            difference = delta.difference(name).to(tensor.device).reshape(tensor.shape)
            yield None, (difference * _per_neuron(coefficients, tensor, axis)).reshape(-1)


def _at_positions(coefficients: torch.Tensor, positions: torch.Tensor, shape: torch.Size, axis: int) -> torch.Tensor:
    """The coefficient of each entry's neuron."""
    if coefficients.numel() == 1:
        return coefficients
    behind = shape[axis + 1 :].numel()
    return coefficients[(positions // behind) % shape[axis]]


def _per_neuron(scale: torch.Tensor, tensor: torch.Tensor, axis: int) -> torch.Tensor:
    if scale.numel() == 1:
        return scale
    return scale.reshape([-1 if dim == axis else 1 for dim in range(tensor.dim())])
