"""Stacks of matrices of any layout, for methods that work matrix by matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from patchbay.architecture import Kind, TensorSpec
from patchbay.merge.methods import METHODS
from patchbay.merge.recipe import Scalar
from patchbay.merge.stack import Stack, Stacks

PER_MATRIX = ("tsv_m", "iso_c", "iso_cts", "svc", "wudi")


def matrix_spec(shape: tuple[int, ...], axis: int | None = 0, *, is_vocabulary: bool = False) -> TensorSpec:
    kind = Kind.NORM if axis is None else Kind.CONV if len(shape) > 2 else Kind.CONV1D if axis else Kind.LINEAR
    return TensorSpec("w", "w", shape, "F32", kind, axis, (), False, is_vocabulary)


def matrix_stacks(
    differences: torch.Tensor, weights: Sequence[float] | None = None, tensor: TensorSpec | None = None
) -> Stacks:
    """One tensor, `w`, of all terms [T, *shape]; a linear layer's matrix unless `tensor` says otherwise."""
    weight = torch.ones(len(differences)) if weights is None else torch.tensor(weights)
    layout = tensor or matrix_spec(tuple(differences.shape[1:]))
    return Stacks(("w",), lambda name: Stack(name, differences, weight, layout, lambda: torch.zeros(layout.shape)))


def merge_matrix(
    method: str,
    differences: torch.Tensor,
    weights: Sequence[float] | None = None,
    tensor: TensorSpec | None = None,
    **params: Scalar,
) -> torch.Tensor:
    row = METHODS[method]
    assert row.merge is not None
    [(name, merged)] = row.merge(matrix_stacks(differences, weights, tensor), row.filled(params))
    assert name == "w"
    assert merged.shape == differences.shape[1:]
    assert merged.dtype == torch.float32
    return merged


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(seed: int, size: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, size, size).double())[0].float()


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-4) -> None:
    """To `tolerance` of the larger norm."""
    size = max(float(first.norm()), float(second.norm()), 1e-30)
    assert float((first.double() - second.double()).norm()) <= tolerance * size


@st.composite
def matrices(draw: st.DrawFn, min_terms: int = 1, max_terms: int = 4) -> torch.Tensor:
    """[T, m, n] of random normal numbers, whose singular values differ."""
    terms, rows, columns = (draw(st.integers(*bounds)) for bounds in ((min_terms, max_terms), (1, 9), (1, 9)))
    return normal(draw(st.integers(0, 10_000)), terms, rows, columns)
