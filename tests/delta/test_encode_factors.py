"""What is written of factors, alone or under kept entries, is what a reader sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW, positions
from tests.delta.samples import factored_streams, sample_streams
from tests.delta.test_encode import assert_same, bits, read_back

from patchbay.delta import Factors, SparseRows
from patchbay.delta.codecs import VALUES, Positions, Shape
from patchbay.delta.decode import MOST_RANKS
from patchbay.delta.encode import Streams


def sides(factors: Factors) -> dict[str, torch.Tensor]:
    return {"left": factors.left, "right": factors.right}


@LAW
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from(["fp32", "bf16", "int8", "int4", "sign_column"])), min_size=1
    ),
    st.integers(0, 2**32),
)
def test_what_add_low_rank_returns_is_what_a_reader_sees(
    rows: int, columns: int, listed: list[tuple[int, str]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bands = []
    for rank, encoding in listed[:8]:
        if rank + sum(left.shape[1] for left, *_ in bands) <= min(rows, columns):
            factors = (torch.randn(side, rank, generator=generator) for side in (rows, columns))
            bands.append((*factors, encoding))
    if not bands:
        return
    streams = Streams()
    returned = streams.add_low_rank("w", bands, torch.bfloat16)
    seen = read_back(streams)
    if returned.rank <= MOST_RANKS:
        assert (seen.matrices, seen.vectors, seen.factors.keys()) == ({}, {}, {"w"})
        assert_same(sides(seen.factors["w"]), sides(returned))
    else:
        assert (seen.matrices, seen.factors) == ({}, {})
    assert torch.equal(seen.difference("w"), returned.to_dense())
    exact = sum((left.double() @ right.double().T for left, right, _ in bands), torch.zeros(()))
    worst = max({"fp32": 1e-6, "bf16": 2**-7, "int8": 0.02}.get(encoding, 10) for *_, encoding in bands)
    assert float((returned.to_dense().double() - exact).abs().max()) <= worst * len(bands) * 60


@LAW
@given(
    st.sampled_from(sorted(set(VALUES) - {"levels"})),
    st.sampled_from([(6, 7), (20, 31), (5, 2, 3), (1, 1)]).flatmap(
        lambda shape: st.tuples(st.just(shape), positions(shape))
    ),
    st.lists(st.sampled_from(["fp32", "bf16", "int8", "int4", "sign_column_log"]), min_size=1, max_size=3),
    st.sampled_from(["", "own", "multiples"]),
    st.integers(0, 2**32),
)
def test_kept_entries_over_factors_are_what_a_reader_sees(
    encoding: str, entries: tuple[Shape, Positions], listed: list[str], beside: str, seed: int
) -> None:
    """Each as it would be by itself; the difference is their sum, rounded once more."""
    (shape, where), generator = entries, torch.Generator().manual_seed(seed)
    rows = SparseRows(shape, torch.from_numpy(where.astype(np.int32)), torch.randn(len(where), generator=generator))
    columns = torch.Size(shape[1:]).numel()
    listed = listed[: min(shape[0], columns)]
    bands = [
        (torch.randn(shape[0], 1, generator=generator), torch.randn(columns, 1, generator=generator), v) for v in listed
    ]
    own = {"own": torch.arange(len(where)) % 3 == 0, "multiples": torch.arange(len(where)) % 5 + 1}
    options = {name: value for name, value in own.items() if name == beside}
    alone, streams = Streams(), Streams()
    alone.add_low_rank("w", bands, torch.bfloat16, shape)
    plain = streams.add_sparse("w", rows, encoding, torch.bfloat16, **options)
    returned = streams.add_factors("w", bands)
    seen = read_back(streams)
    assert (seen.vectors, seen.matrices.keys(), seen.factors.keys()) == ({}, {"w"}, {"w"})
    assert torch.equal(seen.matrices["w"].positions, rows.positions)
    assert bits(seen.matrices["w"].values) == bits(plain.values)
    assert_same(sides(seen.factors["w"]), sides(returned))
    assert_same(sides(seen.factors["w"]), sides(read_back(alone).factors["w"]))
    assert seen.factors["w"].shape == shape
    assert bits(seen.difference("w")) == bits(returned.to_dense() + plain.to_dense())


def test_companions_stay_when_factors_come() -> None:
    streams = factored_streams()
    delta = read_back(streams)
    assert delta.factors.keys() == {"mlp.weight", "untouched.weight"}
    assert delta.exceptions["mlp.weight"].positions.tolist() == [0, 7, 3000]
    assert read_back(sample_streams()).factors == {}


def test_only_a_pruned_matrix_has_factors_beside_its_values() -> None:
    streams = Streams()
    streams.add_whole("w", torch.zeros(3, 3), "bf16", torch.float32)
    with pytest.raises(AssertionError, match="only a pruned matrix"):
        streams.add_factors("w", [(torch.ones(3, 1), torch.ones(3, 1), "fp32")])


@pytest.mark.parametrize("rank", [MOST_RANKS, MOST_RANKS + 1])
@pytest.mark.parametrize("kept", [True, False])
def test_many_ranks_are_multiplied_out(rank: int, kept: bool) -> None:
    """Every request would pay for each; the difference is the same to the bit."""
    generator = torch.Generator().manual_seed(rank)
    bands = [(torch.randn(40, rank, generator=generator), torch.randn(30, rank, generator=generator), "int8")]
    streams = Streams()
    if kept:
        streams.add_sparse("w", SparseRows((40, 30), torch.arange(9), torch.ones(9)), "fp32", torch.float32)
        factors = streams.add_factors("w", bands)
    else:
        factors = streams.add_low_rank("w", bands, torch.float32)
    expected = factors.to_dense()
    expected.view(-1)[: 9 if kept else 0] += 1
    seen = read_back(streams)
    assert torch.equal(seen.difference("w"), expected)
    is_whole = rank > MOST_RANKS
    assert ("w" in seen.vectors, "w" in seen.factors) == (is_whole, not is_whole)
    assert ("w" in seen.matrices) == (kept and not is_whole)
