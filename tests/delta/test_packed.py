from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.delta import SparseRows
from patchbay.delta.packed import LANES, WINDOW, PackedRows

SHAPES = st.tuples(st.integers(1, 2 * WINDOW + 3), st.integers(1, 40))


def drawn(shape: tuple[int, int], density: float, seed: int, *, signs: bool) -> SparseRows:
    """Every other seed's values are bf16's."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator)
    if seed % 2:
        dense = dense.bfloat16().float()
    if signs:
        dense = dense.sign() * (1 + torch.rand(shape[1], generator=generator))
    kept = torch.rand(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator) < density
    positions = torch.nonzero((dense * kept).flatten()).flatten()
    return SparseRows(shape, positions.to(torch.int32), dense.flatten()[positions])


@given(SHAPES, st.floats(0, 1), st.integers(0, 10_000), st.booleans(), st.booleans())
def test_what_is_packed_comes_back(
    shape: tuple[int, int], density: float, seed: int, signs: bool, transposed: bool
) -> None:
    rows = drawn(shape, density, seed, signs=signs)
    packed = PackedRows.of(rows, transposed=transposed)
    found = packed.unpacked()
    assert torch.equal(found.positions, rows.positions.long())
    assert torch.equal(found.values, rows.values)
    assert torch.equal(packed.to_dense(), rows.to_dense())
    if signs and not transposed:
        assert packed.sizes is None


@given(SHAPES, st.integers(0, 10_000), st.booleans(), st.lists(st.integers(0, 10_000), max_size=5))
def test_entries_of_some_neurons(shape: tuple[int, int], seed: int, signs: bool, asked: list[int]) -> None:
    rows = drawn(shape, 0.3, seed, signs=signs)
    neurons = torch.tensor([number % shape[0] for number in asked], dtype=torch.int64)
    owners, columns, values = PackedRows.of(rows, transposed=False).entries(neurons)
    found = torch.zeros(len(neurons), shape[1])
    found[owners, columns] = values
    assert torch.equal(found, rows.to_dense()[neurons])


@pytest.mark.parametrize(("values", "bytes_each"), [("signs", 2), ("bf16", 4), ("fp32", 6)])
def test_bytes_are_those_of_the_entries_and_little_else(values: str, bytes_each: int) -> None:
    """A slice is as long as its longest neuron: 16 neighbours by length differ by little."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2048, 768, generator=generator) * (torch.rand(2048, 768, generator=generator) < 0.05)
    positions = torch.nonzero(dense.flatten()).flatten()
    kept = dense.flatten()[positions]
    rows = SparseRows((2048, 768), positions, {"signs": kept.sign(), "bf16": kept.bfloat16().float()}.get(values, kept))
    packed = PackedRows.of(rows, transposed=False)
    assert packed.num_bytes < 1.06 * bytes_each * len(positions) + 16_000
    assert packed.slots.shape[1] == LANES


def test_a_zero_keeps_its_sign() -> None:
    rows = SparseRows((1, 3), torch.tensor([0, 2]), torch.tensor([-0.0, 0.0]))
    found = PackedRows.of(rows, transposed=False).unpacked()
    assert torch.equal(torch.signbit(found.values), torch.tensor([True, False]))
