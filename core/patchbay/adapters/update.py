"""What LoRA, DoRA and (IA)^3 do to one tensor, in float64. Knows nothing of files and of names."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from patchbay.architecture import Kind
from patchbay.errors import FinetuneMismatch

Shape = tuple[int, ...]
# Names that PEFT gives a module's adapter tensors.
DOWN, UP, UP_BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_DOWN, EMBEDDING_UP = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE = "lora_magnitude_vector"
VECTOR = "ia3_l"
VALUE = "value"  # the whole tensor: modules_to_save, biases, saved embeddings
PARTS = (DOWN, UP, UP_BIAS, EMBEDDING_DOWN, EMBEDDING_UP, MAGNITUDE, VECTOR)
# The axis whose entries DoRA gives a magnitude each; for an embedding, which it takes for a transposed linear, columns.
_MAGNITUDE_AXIS = {Kind.LINEAR: 0, Kind.CONV1D: 1, Kind.EMBEDDING: 1, Kind.CONV: 0}


def update(kind: Kind, parts: Mapping[str, torch.Tensor], scaling: float, start: torch.Tensor) -> torch.Tensor:
    """float64 [start's shape]: what is added to `start`.

    LoRA: s B A; DoRA: m / |W + s B A| * (W + s B A) - W; (IA)^3: (l - 1) * W, on biases too; else nothing.
    """
    if VECTOR in parts:
        return start.double() * (_oriented(kind, parts[VECTOR].double(), start) - 1)
    if UP_BIAS in parts:
        return scaling * parts[UP_BIAS].double()
    if rank_of({name: tuple(part.shape) for name, part in parts.items()}) is None:
        return torch.zeros(start.shape, dtype=torch.float64)
    difference = _low_rank(kind, parts, scaling, start.shape)
    if MAGNITUDE not in parts:
        return difference
    moved = start.double() + difference
    norm = _norms(kind, moved)
    return moved * (parts[MAGNITUDE].double().reshape(norm.shape) / norm) - start.double()


def rank_of(parts: Mapping[str, Shape]) -> int | None:
    """Rows of A, or None for a tensor without LoRA."""
    shape = parts.get(DOWN) or parts.get(EMBEDDING_DOWN)
    return shape[0] if shape else None


def check_parts(name: str, kind: Kind, shape: Shape, parts: Mapping[str, Shape]) -> None:
    """Raises FinetuneMismatch unless the adapter's tensors of `name` are complete and fit its shape."""
    for expected in _layouts(kind, shape, rank_of(parts) or 0):
        found = {part: size for part, size in parts.items() if part != VALUE}
        if found in (expected, {**expected, MAGNITUDE: found.get(MAGNITUDE)}):
            break
    else:
        sizes = ", ".join(f"{part} {list(size)}" for part, size in parts.items())
        raise FinetuneMismatch(f"the adapter's {sizes} do not fit {name!r} {list(shape)} of the base", param=name)
    magnitude = parts.get(MAGNITUDE)
    if magnitude is not None and torch.Size(magnitude).numel() != shape[_MAGNITUDE_AXIS[kind]]:
        raise FinetuneMismatch(f"the adapter's magnitudes {list(magnitude)} do not fit {name!r}", param=name)


def _layouts(kind: Kind, shape: Shape, rank: int) -> list[dict[str, Shape]]:
    """Every complete set of adapter tensors, without magnitudes, for a tensor of that shape."""
    layouts: list[dict[str, Shape]] = [{}]
    if kind in (Kind.LINEAR, Kind.CONV1D):
        rows, columns = shape if kind is Kind.LINEAR else shape[::-1]
        layouts += [{DOWN: (rank, columns), UP: (rows, rank)}, {VECTOR: (rows, 1)}, {VECTOR: (1, columns)}]
    elif kind is Kind.EMBEDDING:
        layouts += [{EMBEDDING_DOWN: (rank, shape[0]), EMBEDDING_UP: (shape[1], rank)}]
    elif kind is Kind.CONV:
        layouts += [{DOWN: (rank, *shape[1:]), UP: (shape[0], rank, *[1] * len(shape[2:]))}]
    elif len(shape) == 1:
        layouts += [{UP_BIAS: shape}, {VECTOR: (*shape, 1)}]
    return layouts


def _low_rank(kind: Kind, parts: Mapping[str, torch.Tensor], scaling: float, shape: torch.Size) -> torch.Tensor:
    if kind is Kind.EMBEDDING:
        up, down = parts[EMBEDDING_DOWN].double().T, parts[EMBEDDING_UP].double().T
    else:
        up, down = parts[UP].double().flatten(1), parts[DOWN].double().flatten(1)
    if kind is Kind.CONV1D:
        up, down = down.T, up.T
    return ((scaling * up) @ down).reshape(shape)


def _oriented(kind: Kind, vector: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    if start.dim() == 1:
        return vector.flatten()
    return vector.T if kind is Kind.CONV1D else vector


def _norms(kind: Kind, weight: torch.Tensor) -> torch.Tensor:
    others = [axis for axis in range(weight.dim()) if axis != _MAGNITUDE_AXIS[kind]]
    norms: torch.Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return norms
