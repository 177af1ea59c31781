"""Both pruners against the plain definition: one long vector, sorted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.compress.prune import KeepLargest, KeepRandom, num_kept
from patchbay.delta import SparseRows
from patchbay.delta.codecs import seeded_positions

Vector = dict[str, torch.Tensor]

TINY, HUGE = 1e-40, 3e38  # a denormal, and near the end of the range
FEW = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0])
ANY = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([TINY, -TINY, HUGE]))
PERMILLE = st.one_of(st.integers(0, 1000), st.sampled_from([0, 50, 290, 1000]))


@st.composite
def vectors(draw: st.DrawFn) -> Vector:
    """Up to four matrices; in half of the cases with a handful of magnitudes, so that nearly all are ties."""
    values = draw(st.sampled_from([FEW, ANY]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12)), min_size=1, max_size=4))
    return {
        f"m{number}": torch.tensor(draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))).reshape(
            rows, columns
        )
        for number, (rows, columns) in enumerate(shapes)
    }


def size(vector: Vector) -> int:
    return sum(tensor.numel() for tensor in vector.values())


def keep_largest(vector: Vector, density: float, scale: float = 1.0) -> dict[str, SparseRows]:
    pruner = KeepLargest(vector.__getitem__, sorted(vector), num_kept(density, size(vector)), scale=scale)
    return {name: pruner(name, vector[name]) for name in sorted(vector)}


def keep_random(vector: Vector, density: float, seed: int, *, rescale: bool = True) -> dict[str, SparseRows]:
    keep = num_kept(density, size(vector))
    pruner = KeepRandom({name: t.numel() for name, t in vector.items()}, keep, seed=seed, rescale=rescale)
    return {name: pruner(name, tensor) for name, tensor in vector.items()}


def check_rows(kept: dict[str, SparseRows], vector: Vector) -> None:
    for name, rows in kept.items():
        assert rows.shape == tuple(vector[name].shape)
        assert rows.values.dtype == torch.float32
        assert rows.positions.dtype == torch.int32
        assert bool((rows.positions.diff() > 0).all())


@given(vectors(), PERMILLE)
def test_largest_is_a_stable_sort_over_the_whole_vector(vector: Vector, permille: int) -> None:
    long = np.concatenate([vector[name].flatten().numpy() for name in sorted(vector)])
    keep = permille * len(long) // 1000
    chosen = np.sort(np.argsort(-np.abs(long), kind="stable")[:keep])
    kept = keep_largest(vector, permille / 1000)
    check_rows(kept, vector)
    start, positions = 0, []
    for name in sorted(vector):
        positions += [start + int(p) for p in kept[name].positions]
        start += vector[name].numel()
    assert positions == chosen.tolist()
    assert np.concatenate([kept[name].values.numpy() for name in sorted(vector)]).tolist() == long[chosen].tolist()


@pytest.mark.parametrize("density", [0.01, 0.05, 0.29, 0.5, 0.999])
def test_heavy_ties_keep_exactly_the_floor(density: float) -> None:
    """Differences of bf16 weights have few distinct magnitudes."""
    generator = torch.Generator().manual_seed(0)
    vector = {f"m{i}": torch.randint(-3, 4, (50, 40), generator=generator) / 256 for i in range(5)}
    assert sum(len(rows.values) for rows in keep_largest(vector, density).values()) == num_kept(density, 10_000)


def test_ties_go_to_the_lower_index() -> None:
    vector = {"b": torch.ones(4), "a": torch.tensor([-1.0, 2.0, 1.0])}
    kept = keep_largest(vector, 4 / 7)
    assert {name: rows.positions.tolist() for name, rows in kept.items()} == {"a": [0, 1, 2], "b": [0]}
    assert kept["a"].values.tolist() == [-1.0, 2.0, 1.0]


@given(vectors())
def test_density_one_keeps_all_and_zero_none(vector: Vector) -> None:
    for name, rows in keep_largest(vector, 1.0).items():
        assert torch.equal(rows.to_dense(), vector[name])
        assert len(rows.values) == vector[name].numel()
    assert all(len(rows.values) == 0 for rows in keep_largest(vector, 0.0).values())


def test_scale_multiplies_what_is_kept() -> None:
    kept = keep_largest({"a": torch.tensor([[3.0, -1.0], [0.5, -4.0]])}, 0.5, scale=1.5)["a"]
    assert kept.to_dense().tolist() == [[4.5, 0.0], [0.0, -6.0]]


@given(st.integers(0, 1000), st.integers(0, 10**12))
def test_num_kept_is_the_floor_of_a_decimal_density(permille: int, total: int) -> None:
    assert num_kept(permille / 1000, total) == permille * total // 1000


def test_num_kept_is_not_one_too_few() -> None:
    assert 0.29 * 100 < 29
    assert num_kept(0.29, 100) == 29


@given(vectors(), PERMILLE, st.integers(0, 2**32))
def test_random_keeps_exactly_the_floor_rescaled(vector: Vector, permille: int, seed: int) -> None:
    kept = keep_random(vector, permille / 1000, seed)
    check_rows(kept, vector)
    keep = permille * size(vector) // 1000
    assert sum(len(rows.values) for rows in kept.values()) == keep
    for name, rows in kept.items():
        assert torch.equal(rows.values, vector[name].flatten()[rows.positions.long()] * (size(vector) / max(1, keep)))


@given(vectors(), PERMILLE, st.integers(0, 2**32), st.permutations(range(4)))
def test_random_does_not_depend_on_reading_order(
    vector: Vector, permille: int, seed: int, order: tuple[int, ...]
) -> None:
    shuffled = {name: vector[name] for i in order if (name := f"m{i}") in vector}
    first, second = keep_random(vector, permille / 1000, seed), keep_random(shuffled, permille / 1000, seed)
    for name in vector:
        assert torch.equal(first[name].positions, second[name].positions)
        assert torch.equal(first[name].values, second[name].values)


def test_random_is_decided_by_the_seed() -> None:
    vector = {"a": torch.ones(100), "b": torch.ones(100)}
    draws = [tuple(keep_random(vector, 0.3, seed)["a"].positions.tolist()) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_matrices_of_equal_size_are_drawn_apart() -> None:
    kept = keep_random({"a": torch.ones(200), "b": torch.ones(200)}, 0.5, 0)
    assert kept["a"].positions.tolist() != kept["b"].positions.tolist()


def test_positions_are_drawn_again_from_the_seed_alone() -> None:
    pruner = KeepRandom({"a": 300, "b": 50}, 70, seed=5)
    for name, entries in (("a", 300), ("b", 50)):
        drawn = seeded_positions(pruner.seed_of(name), pruner.counts[name], entries)
        assert pruner(name, torch.ones(entries)).positions.tolist() == drawn.tolist()


@pytest.mark.parametrize("keep", [1, 5, 11, 12])
def test_smallest_is_the_magnitude_of_the_last_kept_entry(keep: int) -> None:
    vector = {"a": torch.linspace(-3, 2, 12)}
    assert KeepLargest(vector.__getitem__, ["a"], keep).smallest == vector["a"].abs().sort(descending=True)[0][keep - 1]


def test_random_is_unbiased() -> None:
    """The mean over seeds is tau where the stretches, of which each gives one entry, are equally long: here 5."""
    vector = {"a": torch.arange(1.0, 11.0), "b": torch.linspace(-2, 2, 25), "c": torch.tensor([[5.0, -6, 7, -8, 9]])}
    seeds, probability = 2000, 0.2
    sums = {name: torch.zeros(tensor.shape) for name, tensor in vector.items()}
    for seed in range(seeds):
        for name, rows in keep_random(vector, probability, seed).items():
            sums[name] += rows.to_dense()
    for name, tensor in vector.items():
        deviation = tensor.abs() * ((1 - probability) / probability / seeds) ** 0.5
        assert bool(((sums[name] / seeds - tensor).abs() <= 5 * deviation + 1e-6).all()), name


def test_shares_are_even_on_average() -> None:
    """Each matrix's count is rounded at random, so that a matrix too small for one entry gets one sometimes."""
    sizes, seeds = {"a": 7, "b": 30, "c": 3}, 2000
    counts = [KeepRandom(sizes, 12, seed=seed).counts for seed in range(seeds)]
    for name, entries in sizes.items():
        mean = sum(count[name] for count in counts) / seeds
        assert abs(mean - 0.3 * entries) < 5 * 0.5 / seeds**0.5, name


def test_without_rescaling_values_stay() -> None:
    tensor = torch.arange(1.0, 11.0)
    rows = keep_random({"a": tensor}, 0.4, 3, rescale=False)["a"]
    assert torch.equal(rows.values, tensor[rows.positions.long()])


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_even_for_models_of_any_size(seed: int) -> None:
    """Seventy billion entries; nothing of that size is allocated."""
    sizes = {"a": 64 * 10**9, "b": 6 * 10**9 - 3, "c": 3}
    counts = KeepRandom(sizes, num_kept(0.05, 70 * 10**9), seed=seed).counts
    assert sum(counts.values()) == 35 * 10**8
    assert all(abs(counts[name] - 0.05 * sizes[name]) < 1 for name in sizes)
