"""The C code's product of few rows is x W^T + b rounded once, and a row's bits are its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.execute.kernels import native
from patchbay.execute.kernels.linear import MOST, linear

needs_bf16 = pytest.mark.skipif(not native.has_bf16(), reason="no C code here, or no processor for it")
SIZES = st.tuples(st.integers(1, MOST), st.integers(1, 131), st.integers(1, 37))


def drawn(
    sizes: tuple[int, int, int], seed: int, *, bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    rows, inputs, outputs = sizes
    generator = torch.Generator().manual_seed(seed)
    x, weight, b = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    return x, weight, b if bias else None


@torch.no_grad()
@given(SIZES, st.integers(0, 10_000), st.booleans())
def test_the_sum_is_rounded_once(sizes: tuple[int, int, int], seed: int, bias: bool) -> None:
    x, weight, b = drawn(sizes, seed, bias=bias)
    exact = x.double() @ weight.double().T + (0 if b is None else b.double())
    # Half a step of bf16, and what fp32 loses where terms cancel.
    room = exact.abs() * 2**-8 + 1e-5 * (x.double().abs() @ weight.double().abs().T)
    assert ((linear(x, weight, b).double() - exact).abs() <= room).all()


@needs_bf16
@torch.no_grad()
@given(SIZES, st.integers(0, 10_000), st.integers(1, 3))
def test_the_bits_of_a_row_are_its_own(sizes: tuple[int, int, int], seed: int, threads: int) -> None:
    x, weight, b = drawn(sizes, seed, bias=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = linear(x, weight, b)
    finally:
        torch.set_num_threads(before)
    for row in range(len(x)):
        assert torch.equal(linear(x[row : row + 1], weight, b)[0], together[row])


@torch.no_grad()
def test_what_is_not_finite_stays_in_its_row() -> None:
    x, weight, _ = drawn((8, 70, 9), 0, bias=False)
    expected = linear(x, weight, None)
    x[2, 69], x[5, 3] = torch.inf, torch.nan
    found = linear(x, weight, None)
    assert not found[[2, 5]].isfinite().any()
    others = [0, 1, 3, 4, 6, 7]
    assert torch.equal(found[others], expected[others])


def test_all_else_is_torchs() -> None:
    x, weight, b = drawn((4, 40, 12), 0, bias=True)
    weight.requires_grad_()
    linear(x, weight, b).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    with torch.no_grad():
        expected = torch.nn.functional.linear(x.float(), weight.float(), b.float())  # type: ignore[union-attr]
        assert torch.equal(linear(x.float(), weight.float(), b.float()), expected)  # type: ignore[union-attr]
        wide = torch.randn(4, 80).bfloat16()[:, ::2]
        torch.testing.assert_close(linear(wide, weight, b), linear(wide.contiguous(), weight, b), rtol=1e-2, atol=1e-2)
        assert linear(x[:0], weight, b).shape == (0, 12)
        many = x.repeat(MOST, 1)
        torch.testing.assert_close(linear(many, weight, b)[:4], linear(x, weight, b), rtol=1e-2, atol=1e-2)
