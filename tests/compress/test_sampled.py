"""One draw of a re-weighted vector: its mean, its number of entries, its values and what a file makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.problems import flat, random_tensors, tensors, vector_of

from patchbay.compress.budget import entropy
from patchbay.compress.parts import SparsePart
from patchbay.compress.sampled import EVENLY, WHOLE, Sampled, region_weights
from patchbay.compress.sampling import solve_rate
from patchbay.delta.encode import Streams
from patchbay.delta.frames import pack

Tensors = Mapping[str, torch.Tensor]
WEIGHTS = st.lists(st.one_of(st.floats(0, 4), st.just(0.0)), min_size=1, max_size=8).map(tuple)
MATRICES = random_tensors(seed=4, a=(30, 20), b=(8, 50), c=(400, 1))
# Powers of 2^(1/4), the grid of a file: one scale a column of "a", one a row of "b", none for "c".
COLUMNS = {"a": 2 ** (torch.arange(-10.0, 10) / 4).reshape(1, 20), "b": 2 ** (torch.arange(8.0) / 2).reshape(8, 1)}
NARROW = {"a": 2 ** (torch.arange(20) % 8 / 4 - 1).reshape(1, 20), "b": 2 ** (torch.arange(8) / 4).reshape(8, 1)}


def sampled(matrices: Tensors, groups: int, columns: Tensors | None = None) -> Sampled:
    return Sampled(vector_of(matrices), groups, columns or {})


def draw(
    matrices: Tensors, weights: tuple[float, ...], keep: int, seed: int = 0, columns: Tensors | None = None
) -> dict[str, SparsePart]:
    parts = dict(sampled(matrices, len(weights), columns).parts(weights, keep, seed))
    assert all(isinstance(part, SparsePart) for part in parts.values())
    return parts  # type: ignore[return-value]


def count(parts: Mapping[str, SparsePart]) -> int:
    return sum(len(part.rows.positions) for part in parts.values())


def reweighted(matrices: Tensors, weights: tuple[float, ...], columns: Tensors | None = None) -> torch.Tensor:
    """u = w * tau, flat, from the edges between groups alone."""
    edges = sampled(matrices, len(weights), columns).edges.tolist()
    scales = columns or {}
    u = []
    for name in sorted(matrices):
        importance = (matrices[name].abs() * scales.get(name, torch.ones(1))).flatten().tolist()
        factors = [weights[next(g for g, edge in enumerate(edges) if value >= edge)] for value in importance]
        u.append(matrices[name].flatten() * torch.tensor(factors))
    return torch.cat(u)


@given(tensors(), WEIGHTS, st.integers(0, 60), st.integers(0, 2**32))
def test_number_kept_is_exact_whatever_the_weights(
    vector: dict[str, torch.Tensor], weights: tuple[float, ...], keep: int, seed: int
) -> None:
    """`keep` entries, or all of the re-weighted vector's that are not 0; and none that is."""
    u = reweighted(vector, weights)
    parts = draw(vector, weights, keep, seed)
    assert count(parts) == min(keep, int(torch.count_nonzero(u)))
    assert bool((u[flat(parts) != 0] != 0).all())
    for part in parts.values():
        assert part.rows.positions.dtype == torch.int32
        assert part.rows.values.dtype == torch.float32
        assert bool(torch.isfinite(part.rows.values).all())
        assert bool((part.rows.positions.diff() > 0).all())


@given(tensors(), WEIGHTS, st.integers(0, 2**32))
def test_kept_in_full_it_is_the_reweighted_vector(
    vector: dict[str, torch.Tensor], weights: tuple[float, ...], seed: int
) -> None:
    total = sum(tensor.numel() for tensor in vector.values())
    torch.testing.assert_close(flat(draw(vector, weights, total, seed)), reweighted(vector, weights))


@pytest.mark.parametrize("columns", [None, COLUMNS], ids=["plain", "columns"])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0, 1.0), (0.5, 4.0, 0.0, 1.5), (0.0, 0.0, 0.0, 2.0)])
def test_mean_over_seeds_is_the_reweighted_vector(weights: tuple[float, ...], columns: Tensors | None) -> None:
    """Unbiased: u is rounded up or down to a multiple of the constant. An entry alone may be off by a fiftieth of it,
    because the walk's offset is never within .01 of an integer; entries of similar size together not.
    """
    seeds, keep, u = 400, 90, reweighted(MATRICES, weights, columns)
    candidates = sampled(MATRICES, len(weights), columns)
    mean = sum(flat(dict(candidates.parts(weights, keep, seed))) for seed in range(seeds)) / seeds
    scale = torch.cat([(columns or {}).get(n, torch.ones(1)).expand(t.shape).flatten() for n, t in MATRICES.items()])
    constant = 1 / (solve_rate([u.abs() * scale], keep) * scale)
    up = (u.abs() / constant).frac()
    deviation = constant * (up * (1 - up) / seeds).sqrt()
    assert bool(((mean - u).abs() <= 5 * deviation + 0.021 * constant).all())
    for similar in torch.argsort(u.abs(), descending=True)[: int(torch.count_nonzero(u))].tensor_split(4):
        assert float((mean * u.sign())[similar].sum()) == pytest.approx(float(u[similar].abs().sum()), rel=0.1)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 0.5, 3.0)])
def test_values_are_multiples_of_one_constant(weights: tuple[float, ...]) -> None:
    parts, u = draw(MATRICES, weights, 90), reweighted(MATRICES, weights)
    values = torch.cat([part.rows.values / part.multiples for part in parts.values() if part.multiples is not None])
    assert len(values) == 90
    assert float(values.abs().max()) == pytest.approx(float(values.abs().min()), rel=1e-6)
    kept = flat(parts) != 0
    assert torch.equal(flat(parts)[kept].sign(), u[kept].sign())


def test_values_are_constant_over_the_scale_of_their_column() -> None:
    parts = draw(MATRICES, (1.0, 1.0), 90, columns=COLUMNS)
    constants = []
    for name, part in parts.items():
        assert part.multiples is not None
        scale = COLUMNS.get(name, torch.ones(1)).expand(MATRICES[name].shape).flatten()[part.rows.positions]
        constants.append(part.rows.values.abs() * scale / part.multiples)
    found = torch.cat(constants)
    assert float(found.max()) == pytest.approx(float(found.min()), rel=1e-5)
    assert {name: part.values for name, part in parts.items()} == {
        "a": "sign_column_log",
        "b": "sign_row",
        "c": "sign_tensor",
    }


def test_large_entries_are_rounded_multiples() -> None:
    """An entry as large as all others together is always kept, and right but for the last multiple."""
    matrices = {**MATRICES, "b": MATRICES["b"].clone()}
    matrices["b"][3, 7] = -900.0
    for seed in range(20):
        part = draw(matrices, (1.0, 1.0), 90, seed)["b"]
        assert part.multiples is not None
        place = part.rows.positions.tolist().index(3 * 50 + 7)
        constant = float(part.rows.values.abs().min())
        assert float(part.multiples[place]) > 50
        assert float(part.rows.values[place]) == pytest.approx(-900, abs=constant)


def test_multiples_that_no_file_holds_are_values_of_their_own() -> None:
    matrix = torch.cat([torch.full((30,), 1e6), torch.full((970,), 1.0)]).reshape(10, 100)
    parts = draw({"a": matrix}, (1.0,), 600)
    assert (parts["a"].values, parts["a"].multiples) == ("int8", None)
    assert float(parts["a"].rows.values.max()) == 1e6


@pytest.mark.parametrize("columns", [None, NARROW], ids=["plain", "columns"])
def test_file_keeps_one_bit_a_value(columns: Tensors | None) -> None:
    """What a reader gets is the part in memory up to the rounding of its scale."""
    matrices = {n: t.sign() * (1 + t.abs() / 8) for n, t in random_tensors(seed=5, a=(60, 20), b=(8, 100)).items()}
    matrices["a"][0, 10] = 5000.0
    for name, part in draw(matrices, (1.0, 1.0, 0.5), 90, columns=columns).items():
        stored = Streams().add_sparse(name, part.rows, part.values, torch.float32, multiples=part.multiples)
        assert torch.equal(stored.positions, part.rows.positions)
        rounding = 2**-10 if part.values == "sign_row" else 1e-6
        torch.testing.assert_close(stored.values, part.rows.values, rtol=rounding, atol=0)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)])
def test_all_zero_vectors_keep_nothing(weights: tuple[float, ...]) -> None:
    for keep in (0, 1, 12):
        assert count(draw({"a": torch.zeros(3, 4)}, weights, keep)) == 0


def test_no_matrices_at_all() -> None:
    assert draw({}, (1.0, 1.0), 0) == {}


def test_ties_share_the_budget() -> None:
    """All magnitudes equal: each is kept with the same chance, and the constant is 1 / density times theirs."""
    parts = draw({"a": torch.full((20, 20), -0.5)}, (1.0,) * 4, 40)
    assert parts["a"].rows.values.tolist() == pytest.approx([-5.0] * 40)
    assert parts["a"].rows.positions.tolist()[:2] == [parts["a"].rows.positions[0], parts["a"].rows.positions[0] + 10]


def test_draws_are_decided_by_the_seed() -> None:
    def positions(seed: int) -> list[int]:
        return draw(MATRICES, (1.0, 1.0), 90, seed)["a"].rows.positions.tolist()

    assert positions(1) == positions(1)
    assert positions(1) != positions(2)


def test_region_weights() -> None:
    assert region_weights(4, 1, 1.5) == (1.5, 0.0, 0.0, 0.0)
    assert region_weights(3, 3, 2.0) == (2.0, 2.0, 2.0)


def test_cost_is_that_of_positions_and_signs_matrix_by_matrix() -> None:
    """Equal magnitudes: the expected counts are exact. Entries that are 0 are never kept, and pay for the others."""
    sampled = Sampled(vector_of({"a": torch.ones(40, 50), "b": torch.zeros(10, 100)}), 1)
    expected = EVENLY * (2000 * entropy(0.1) + 200)
    assert sampled.cost((1.0,), 200) == pytest.approx(expected, rel=1e-6)
    assert sampled.cost((1.0,), 0) == 0.0
    # Kept in full: a byte each, and no position is left open.
    assert sampled.cost((1.0,), 2000) == sampled.cost((1.0,), 3000) == pytest.approx(WHOLE * 2000)


def test_cost_counts_the_multiples_of_entries_kept_for_certain() -> None:
    """Ten entries of 2.5 constants: five are kept twice, five three times, 190 of the others once."""
    matrix = torch.ones(20, 100)
    matrix[0, :10] = 2.5 * 1990 / 190
    sampled = Sampled(vector_of({"a": matrix}), 1)
    shares = (190 / 200, 5 / 200, 5 / 200)
    multiples = -200 * sum(share * math.log2(share) for share in shares)
    expected = EVENLY * (2000 * entropy(0.1) + 200) + multiples
    assert sampled.cost((1.0,), 200) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 1.0])
def test_cost_is_near_the_size_of_the_streams(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # Heavy tails, as those of task vectors: few entries are many constants large.
    matrix = torch.randn(400, 500, generator=generator) * torch.randn(400, 500, generator=generator).exp()
    sampled = Sampled(vector_of({"a": matrix}), 8)
    keep = int(density * matrix.numel())
    (name, part), *_ = sampled.parts((1.0,) * 8, keep, 0)
    assert isinstance(part, SparsePart)
    streams = Streams()
    streams.add_sparse(name, part.rows, part.values, torch.float32, multiples=part.multiples)
    stored = sum(len(pack(data)) for data in streams.streams.values())
    assert sampled.cost((1.0,) * 8, keep) == pytest.approx(8 * stored, rel=0.3)
