"""The C code's products are those of the dense difference, for every number of matrices, rows and tokens."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.test_packed import SHAPES, drawn

from patchbay.delta.packed import WIDEST, PackedRows
from patchbay.execute.kernels import native
from patchbay.execute.kernels.packed import Packed, Together, can_pack

pytestmark = pytest.mark.skipif(not native.is_there(), reason="the package was built where no C compiler was")
CPU = torch.device("cpu")


def packed(shape: tuple[int, int], density: float, seed: int, *, signs: bool) -> tuple[Packed, torch.Tensor]:
    rows = drawn(shape, density, seed, signs=signs)
    return Packed(PackedRows.of(rows, transposed=False)), rows.to_dense()


@given(SHAPES, st.integers(0, 10_000), st.booleans(), st.integers(1, 40), st.booleans())
def test_products(shape: tuple[int, int], seed: int, signs: bool, count: int, half: bool) -> None:
    kernel, dense = packed(shape, 0.3, seed, signs=signs)
    x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(seed + 1))
    x = x.bfloat16() if half else x
    torch.testing.assert_close(kernel.product(x), x.float() @ dense.T, rtol=1e-4, atol=1e-4)


@given(SHAPES, st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]), st.booleans())
def test_sums(shape: tuple[int, int], seed: int, signs: bool, density: float, per_neuron: bool) -> None:
    kernel, difference = packed(shape, density, seed, signs=signs)
    generator = torch.Generator().manual_seed(seed + 1)
    dense, factors = torch.randn(shape, generator=generator), torch.randn(shape[0] if per_neuron else 1)
    expected = dense + factors[:, None] * difference
    kernel.add_to(dense, factors)
    torch.testing.assert_close(dense, expected, rtol=1e-6, atol=1e-6)


@given(
    SHAPES,
    st.integers(0, 10_000),
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 6), min_size=1, max_size=7)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from(["none", "numbers", "neurons"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 2),
)
def test_many_matrices_in_one_call(
    shape: tuple[int, int],
    seed: int,
    used: list[tuple[bool, list[int]]],
    tokens: int,
    factors: str,
    dtype: torch.dtype,
    threads: int,
) -> None:
    """y[row] += c (x[row] D^T), whoever else adds to the row."""
    generator = torch.Generator().manual_seed(seed)
    made = [packed(shape, 0.2, seed + place, signs=signs) for place, (signs, _) in enumerate(used)]
    rows = torch.tensor([row for _, listed in used for row in listed])
    inputs = torch.randn(7, tokens, shape[1], generator=generator).to(dtype)
    outputs = torch.randn(7, tokens, shape[0], generator=generator).to(dtype)
    width = {"none": 0, "numbers": 1, "neurons": shape[0]}[factors]
    coefficients = torch.randn(3, width, generator=generator) if width else None
    entries = torch.randint(3, (len(rows),), generator=generator) if width else None
    expected, item = outputs.float(), 0
    for (_, dense), (_, listed) in zip(made, used, strict=True):
        for row in listed:
            added = inputs[row].float() @ dense.T
            expected[row] += added if coefficients is None or entries is None else added * coefficients[entries[item]]
            item += 1
    together = Together.of(
        [kernel for kernel, _ in made], [len(listed) for _, listed in used], rows, coefficients, entries
    )
    assert together.takes(inputs, outputs)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together.add(inputs, outputs)
    finally:
        torch.set_num_threads(before)
    bound = 1e-4 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(outputs.float(), expected, rtol=bound, atol=bound * 10)


def test_what_is_not_finite_stays_so() -> None:
    kernel, _ = packed((300, 20), 1.0, 0, signs=True)
    x = torch.ones(2, 20)
    x[0, 3], x[1, 4] = torch.nan, torch.inf
    outputs = torch.zeros(2, 1, 300, dtype=torch.bfloat16)
    Together.of([kernel], [2], torch.arange(2), None, None).add(x[:, None].contiguous(), outputs)
    assert outputs[0].isnan().all() and outputs[1].isinf().all()


def test_threads_run_at_the_same_time() -> None:
    kernel, dense = packed((512, 64), 0.3, 0, signs=False)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    failed: list[int] = []

    def ask(number: int) -> None:
        for _ in range(50):
            if not torch.allclose(kernel.product(x[number : number + 4]), x[number : number + 4] @ dense.T, atol=1e-4):
                failed.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_cannot_be_packed() -> None:
    assert can_pack(WIDEST, CPU)
    assert not can_pack(WIDEST + 1, CPU)
    assert not can_pack(8, torch.device("meta"))
    kernel, _ = packed((8, 4), 0.5, 0, signs=True)
    together = Together.of([kernel], [1], torch.arange(1), None, None)
    whole = torch.zeros(1, 2, 8)
    assert not together.takes(torch.zeros(1, 1, 4).double(), whole)
    assert not together.takes(torch.zeros(1, 1, 4), whole.mT)


def test_the_widest_matrix() -> None:
    kernel, dense = packed((3, WIDEST), 0.01, 0, signs=True)
    x = torch.randn(5, WIDEST, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kernel.product(x), x @ dense.T, rtol=1e-4, atol=1e-3)
