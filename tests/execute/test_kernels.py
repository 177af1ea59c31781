"""Every kernel is the product with the difference that the delta stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.samples import spec

from patchbay.architecture import Kind
from patchbay.delta import Delta, SparseRows
from patchbay.delta.low_rank import Factors
from patchbay.execute.kernels import compile_matrix
from patchbay.execute.kernels.sparse import FEW, Sparse

CPU = torch.device("cpu")


def drawn(shape: tuple[int, int], density: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


def rows_of(dense: torch.Tensor) -> SparseRows:
    positions = torch.nonzero(dense.flatten()).flatten()
    return SparseRows(tuple(dense.shape), positions.to(torch.int32), dense.flatten()[positions])


def delta_of(kind: str, seed: int, shape: tuple[int, int]) -> tuple[Delta, torch.Tensor]:
    """And the difference, dense."""
    sparse, generator = drawn(shape, 0.3, seed), torch.Generator().manual_seed(seed + 1)
    factors = Factors(shape, *(torch.randn(size, 2, generator=generator) for size in shape))
    parts: dict[str, dict[str, object]] = {"matrices": {}, "vectors": {}, "factors": {}}
    if kind == "dense":
        parts["vectors"]["w"] = sparse
        whole = sparse
    else:
        whole = torch.zeros(shape)
        if "sparse" in kind:
            parts["matrices"]["w"] = rows_of(sparse)
            whole = whole + sparse
        if "factors" in kind:
            parts["factors"]["w"] = factors
            whole = whole + factors.left @ factors.right.T
    empty: dict[str, object] = {}
    return Delta(None, added=empty, copied=empty, exceptions=empty, **parts), whole  # type: ignore[arg-type]


@given(
    st.sampled_from(["sparse", "dense", "factors", "sparse and factors"]),
    st.booleans(),
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3 * FEW),
)
def test_products_rows_and_sums(kind: str, transposed: bool, seed: int, shape: tuple[int, int], count: int) -> None:
    delta, difference = delta_of(kind, seed, shape)
    layout = replace(spec("w", shape), kind=Kind.CONV1D, neuron_axis=1) if transposed else spec("w", shape)
    kernel = compile_matrix(delta, "w", layout, CPU)
    expected = difference.T if transposed else difference
    x = torch.randn(count, expected.shape[1], generator=torch.Generator().manual_seed(seed + 2))
    torch.testing.assert_close(kernel.product(x), x @ expected.T, rtol=1e-4, atol=1e-5)
    neurons = torch.randint(len(expected), (count,), generator=torch.Generator().manual_seed(seed + 3))
    torch.testing.assert_close(kernel.rows(neurons), expected[neurons], rtol=1e-5, atol=1e-6)
    for factors in (torch.tensor([-0.5]), torch.linspace(-1, 2, len(expected))):
        dense = torch.ones(expected.shape)
        kernel.add_to(dense, factors)
        torch.testing.assert_close(dense, 1 + expected * factors[:, None], rtol=1e-5, atol=1e-5)


def test_inputs_of_half_precision_are_multiplied_in_fp32() -> None:
    delta, difference = delta_of("sparse", 0, (5, 300))
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = compile_matrix(delta, "w", spec("w", (5, 300)), CPU).product(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x.float() @ difference.T, rtol=1e-5, atol=1e-5)


def test_bytes_are_those_of_the_entries() -> None:
    kernel = Sparse.of(rows_of(drawn((7, 11), 0.5, 3)), transposed=False, device=CPU)
    assert kernel.num_bytes == 8 * len(kernel.values) + 4 * 8


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_without_entries(transposed: bool) -> None:
    kernel = Sparse.of(rows_of(torch.zeros(3, 4)), transposed=transposed, device=CPU)
    width, neurons = (3, 4) if transposed else (4, 3)
    assert torch.equal(kernel.product(torch.ones(5, width)), torch.zeros(5, neurons))
    assert torch.equal(kernel.rows(torch.tensor([0, 2])), torch.zeros(2, width))
