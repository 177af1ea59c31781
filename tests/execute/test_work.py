"""Whatever way products are made, together or one by one, a row gets its own deltas' sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.samples import spec
from tests.execute.test_kernels import CPU, delta_of

from patchbay.delta.packed import PackedRows
from patchbay.execute.kernels import Kernel, compile_matrix, native, parts_of
from patchbay.execute.kernels.low_rank import LowRank
from patchbay.execute.kernels.packed import Packed
from patchbay.execute.work import MANY, Places, Products

SHAPE = (11, 7)
NUM_ROWS = 5
KINDS = ("sparse", "dense", "factors", "sparse and factors")


def made(kind: str, seed: int) -> tuple[list[Kernel], torch.Tensor]:
    """A kernel in its parts, packed where entries can be, and the difference."""
    delta, whole = delta_of(kind, seed, SHAPE)
    if native.is_there():
        delta.matrices.update({name: PackedRows.of(rows, transposed=False) for name, rows in delta.matrices.items()})  # type: ignore[attr-defined]
    return list(parts_of(compile_matrix(delta, "w", spec("w", SHAPE), CPU))), whole


def places_of(rows: list[list[int]]) -> Places:
    listed = [row for found in rows for row in found]
    return Places(tuple(torch.tensor(found) for found in rows), tuple(map(len, rows)), torch.tensor(listed), None)


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=4, unique=True)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 10_000),
    st.sampled_from([1, 3, 2 * MANY]),
    st.sampled_from(["ones", "numbers", "neurons"]),
    st.booleans(),
)
def test_sums(used: list[tuple[str, list[int]]], seed: int, tokens: int, factors: str, half: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if half else torch.float32
    inputs = torch.randn(NUM_ROWS, tokens, SHAPE[1], generator=generator).to(dtype)
    outputs = torch.randn(NUM_ROWS, tokens, SHAPE[0], generator=generator).to(dtype)
    expected = outputs.float()
    groups: dict[bool, tuple[list[Kernel], list[list[int]], list[torch.Tensor]]] = {}
    for place, (kind, rows) in enumerate(used):
        parts, difference = made(kind, seed + place)
        width = SHAPE[0] if factors == "neurons" else 1
        own = torch.ones(len(rows), 1) if factors == "ones" else torch.randn(len(rows), width, generator=generator)
        for row, coefficients in zip(rows, own, strict=True):
            expected[row] += inputs[row].float() @ difference.T * coefficients
        for part in parts:
            kernels, listed, numbers = groups.setdefault(isinstance(part, Packed), ([], [], []))
            kernels.append(part)
            listed.append(rows)
            numbers.extend(own)
    for kernels, listed, numbers in groups.values():
        Products.of(kernels, places_of(listed), numbers, NUM_ROWS).add(inputs, outputs)
    bound = 0.1 if half else 1e-4
    torch.testing.assert_close(outputs.float(), expected, rtol=bound, atol=bound)


@pytest.mark.skipif(not native.is_there(), reason="the package was built where no C compiler was")
def test_what_is_made_in_one_call() -> None:
    kernels, _ = made("sparse and factors", 0)
    factors, entries = sorted(kernels, key=lambda kernel: isinstance(kernel, Packed))
    assert isinstance(factors, LowRank) and factors.rest is None and isinstance(entries, Packed)
    places = places_of([[0, 1], [1]])
    one = [torch.ones(1)] * 3
    assert Products.of([entries, entries], places, one, 2).together is not None
    assert Products.of([factors, factors], places, one, 2).joined is not None
    assert Products.of([factors, factors], places, [torch.full((SHAPE[0],), 2.0)] * 3, 2).joined is None
    mixed = Products.of([factors, entries], places, one, 2)
    assert mixed.together is None and mixed.joined is None
