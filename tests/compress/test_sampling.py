"""The laws of sampling with unequal probabilities, on vectors small enough to count."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.compress.problems import random_tensors, tensors

from patchbay.compress import prune
from patchbay.compress.sampling import SystematicWalk, geometric_bounds, rank_values, solve_rate

PROBABILITIES = st.lists(st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0])), max_size=60)


def probabilities(vector: dict[str, torch.Tensor], keep: int) -> list[torch.Tensor]:
    rate = solve_rate([t.abs() for t in vector.values()], keep)
    return [(t.abs() * rate).clamp(max=1) for t in vector.values()]


def walk_at(offset: float, values: torch.Tensor) -> list[int]:
    """The walk from one offset, by its definition: exact sums, one entry after the other."""
    total, kept = Fraction(offset), []
    for index, value in enumerate(values.tolist()):
        if math.floor(total + Fraction(value)) > math.floor(total):
            kept.append(index)
        total += Fraction(value)
    return kept


def offset_of(seed: int) -> float:
    return SystematicWalk(seed)._sum


@given(tensors(), st.data())
def test_rate_solves_the_sum(vector: dict[str, torch.Tensor], data: st.DataObject) -> None:
    nonzero = sum(int(torch.count_nonzero(t)) for t in vector.values())
    assume(nonzero > 1)
    keep = data.draw(st.integers(1, nonzero - 1))
    total = sum(float(p.double().sum()) for p in probabilities(vector, keep))
    assert total == pytest.approx(keep, rel=1e-5)


@given(tensors(), st.integers(0, 5))
def test_rate_is_infinite_where_all_are_kept(vector: dict[str, torch.Tensor], more: int) -> None:
    nonzero = sum(int(torch.count_nonzero(t)) for t in vector.values())
    assert solve_rate([t.abs() for t in vector.values()], nonzero + more) == math.inf


def test_rate_of_magnitudes_over_thirty_orders() -> None:
    magnitudes = torch.logspace(-20, 10, 301)
    for keep in (1, 7, 150, 299, 300):
        reached = (magnitudes.double() * solve_rate([magnitudes], keep)).clamp(max=1).sum()
        assert float(reached) == pytest.approx(keep, rel=1e-5)


def test_rate_of_nothing() -> None:
    assert solve_rate([], 0) == math.inf
    assert solve_rate([torch.zeros(3)], 0) == math.inf


@given(PROBABILITIES, st.integers(0, 2**32))
def test_walk_is_the_definition(values: list[float], seed: int) -> None:
    given_ = torch.tensor(values)
    assert SystematicWalk(seed)(given_).tolist() == walk_at(offset_of(seed), given_)


@given(st.lists(st.floats(0, 300, width=32), max_size=60), st.integers(0, 2**32))
def test_counts_are_sizes_rounded_up_or_down(values: list[float], seed: int) -> None:
    sizes = torch.tensor(values)
    counts = SystematicWalk(seed).counts(sizes)
    assert bool(((counts - sizes.double()).abs() < 1).all())
    assert abs(float(counts.sum()) - math.fsum(sizes.tolist())) < 1


def test_counts_are_the_sizes_on_average() -> None:
    sizes = torch.rand(40, generator=torch.Generator().manual_seed(1)) * 5
    mean = sum(SystematicWalk(seed).counts(sizes) for seed in range(2000)) / 2000
    assert bool(((mean - sizes).abs() < 0.02 + 5 * 0.5 / 2000**0.5).all())


def test_streams_of_one_seed_are_different_walks() -> None:
    assert SystematicWalk(3)._sum != SystematicWalk(3, stream=1)._sum


@given(st.lists(PROBABILITIES, min_size=1, max_size=4), st.integers(0, 2**32))
def test_tensors_are_one_walk(lists: list[list[float]], seed: int) -> None:
    whole = SystematicWalk(seed)(torch.tensor([value for values in lists for value in values]))
    walk, positions, start = SystematicWalk(seed), [], 0
    for values in lists:
        positions += [start + position for position in walk(torch.tensor(values)).tolist()]
        start += len(values)
    assert positions == whole.tolist()


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(3))
    values[100:130], values[200:230] = 0.0, 1.0
    whole = [SystematicWalk(seed)(values) for seed in range(20)]
    monkeypatch.setattr(prune, "CHUNK", chunk)
    for seed, positions in enumerate(whole):
        assert torch.equal(SystematicWalk(seed)(values), positions)


@given(tensors(), st.data(), st.integers(0, 2**32))
def test_integer_sums_are_kept_exactly(vector: dict[str, torch.Tensor], data: st.DataObject, seed: int) -> None:
    nonzero = sum(int(torch.count_nonzero(t)) for t in vector.values())
    keep = data.draw(st.integers(0, nonzero))
    walk = SystematicWalk(seed)
    rate = solve_rate([t.abs() for t in vector.values()], keep) if keep else 0.0
    kept = [walk(torch.nan_to_num(t.abs() * rate, nan=0.0).clamp(max=1)) for t in vector.values()]
    assert sum(map(len, kept)) == keep


@given(PROBABILITIES, st.integers(0, 2**32))
def test_every_stretch_gets_its_sum_rounded_up_or_down(values: list[float], seed: int) -> None:
    """So no two neighbours are kept whose probabilities sum to less than one: kept entries repel."""
    kept = set(SystematicWalk(seed)(torch.tensor(values)).tolist())
    for start in range(len(values)):
        for end in range(start, min(len(values), start + 12) + 1):
            total = math.fsum(torch.tensor(values[start:end], dtype=torch.float32).double().tolist())
            count = sum(index in kept for index in range(start, end))
            assert math.floor(total - 1e-6) <= count <= math.ceil(total + 1e-6)


def test_marginals_are_the_probabilities() -> None:
    """Over all offsets exactly; over seeds, whose offsets leave out one fiftieth, to that and statistics."""
    values = torch.rand(40, generator=torch.Generator().manual_seed(1))
    values[5], values[6] = 0.0, 1.0
    grid, seeds = 4000, 4000
    exact, drawn = torch.zeros(40), torch.zeros(40)
    for step in range(grid):
        sums = (values.double().cumsum(0) + (step + 0.5) / grid).floor()
        exact += torch.diff(sums, prepend=torch.zeros(1, dtype=torch.float64))
    for seed in range(seeds):
        drawn[SystematicWalk(seed)(values)] += 1
    torch.testing.assert_close(exact / grid, values, rtol=0, atol=2 / grid)
    assert bool(((drawn / seeds - values).abs() < 0.02 + 5 * 0.5 / seeds**0.5).all())
    assert (float(drawn[5]), float(drawn[6])) == (0, seeds)


def test_number_kept_of_a_million_entries() -> None:
    magnitudes = random_tensors(seed=2, a=(1000, 1000))["a"].abs() ** 2
    for keep in (1, 1000, 50_000, 700_000):
        rate = solve_rate([magnitudes], keep)
        for seed in range(3):
            assert len(SystematicWalk(seed)((magnitudes * rate).clamp(max=1))) == keep


def test_walk_is_decided_by_the_seed() -> None:
    values = torch.full((200,), 0.1)
    assert torch.equal(SystematicWalk(7)(values), SystematicWalk(7)(values))
    assert len({tuple(SystematicWalk(seed)(values).tolist()) for seed in range(30)}) > 5


@given(st.integers(1, 256), st.integers(1, 10**10))
def test_bounds_grow_to_all_entries(groups: int, total: int) -> None:
    bounds = geometric_bounds(groups, total)
    assert len(bounds) == groups
    assert bounds == sorted(bounds)
    assert (bounds[0] >= 1, bounds[-1]) == (True, total)


def test_bounds_are_geometric() -> None:
    bounds = geometric_bounds(8, 10**9)
    assert bounds[0] == 300_000
    assert [b / a for a, b in zip(bounds, bounds[1:], strict=False)] == pytest.approx([3e-4 ** (-1 / 7)] * 7, rel=1e-4)


@given(tensors(), st.data())
def test_rank_values_are_near_the_sorted_ones(vector: dict[str, torch.Tensor], data: st.DataObject) -> None:
    ordered = torch.cat([t.abs().flatten() for t in vector.values()]).sort(descending=True).values
    ranks = data.draw(st.lists(st.integers(1, len(ordered)), min_size=1, max_size=5))
    found = rank_values([t.abs() for t in vector.values()], ranks)
    for rank, value in zip(ranks, found, strict=True):
        true = float(ordered[rank - 1])
        assert true * (1 - 1 / 128) <= value <= true
