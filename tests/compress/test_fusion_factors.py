"""Fusion of task vectors that store matrices as factors, which keep every entry."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.test_fusion import VALUES, WEIGHTS, as_sparse, assert_same, dense

from patchbay.compress.fusion import Fused, Fusion, fuse, search_lambdas
from patchbay.delta import Delta, Factors, SparseRows
from patchbay.errors import WrongShape

SHAPE = (9, 10)


def factors_of(seed: int, rank: int = 2, shape: tuple[int, ...] = SHAPE) -> Factors:
    """Of small whole numbers: products and their sums are exact."""
    generator, columns = torch.Generator().manual_seed(seed), torch.Size(shape[1:]).numel()
    left, right = (torch.randint(-3, 4, (side, rank), generator=generator).float() for side in (shape[0], columns))
    return Factors(shape, left, right)


@st.composite
def task_vectors(draw: st.DrawFn, *, factored: bool = True) -> list[Fused]:
    """One to four tasks, each with factors, kept entries, or both; together at most 8 of 9 ranks."""
    tasks = []
    for _ in range(draw(st.integers(1, 4))):
        values = torch.tensor(draw(st.lists(VALUES, min_size=90, max_size=90))).reshape(SHAPE)
        kind = draw(st.sampled_from(["both", "factors", "entries", "neither"][: 2 if factored else 4]))
        rows = {"a": as_sparse(values)} if kind in ("both", "entries") else {}
        parts = {"a": factors_of(draw(st.integers(0, 99)))} if kind in ("both", "factors") else {}
        tasks.append(Fused(rows, {"bias": torch.arange(3.0)}, parts))
    return tasks


def scaled(task: Fused, factor: float) -> Fused:
    return Fused(
        {n: SparseRows(r.shape, r.positions, factor * r.values) for n, r in task.matrices.items()},
        {n: factor * vector for n, vector in task.vectors.items()},
        {n: Factors(f.shape, factor * f.left, f.right) for n, f in task.factors.items()},
    )


def by_formula(tasks: Sequence[Fused], weights: Sequence[float], scale: float) -> torch.Tensor:
    """A task with factors keeps every entry; one without those that it lists."""
    total, counts = torch.zeros(SHAPE, dtype=torch.float64), torch.zeros(SHAPE)
    for weight, task in zip(weights, tasks, strict=True):
        if task.factors or task.matrices:
            total += weight * task.difference("a").double()
            counts += 1.0 if task.factors else (task.difference("a") != 0).float()
    return (scale * total / counts.clamp(min=1)).float()


@given(task_vectors(factored=False), st.lists(WEIGHTS, min_size=4, max_size=4), WEIGHTS)
def test_the_formula(tasks: list[Fused], weights: list[float], scale: float) -> None:
    weights = weights[: len(tasks)]
    fused = fuse(tasks, weights, scale=scale)
    found, expected = dense(fused).get("a", torch.zeros(SHAPE)), by_formula(tasks, weights, scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    with_factors = [task for task in tasks if task.factors]
    assert bool(fused.factors) == bool(with_factors)
    assert bool(fused.matrices) == any(task.matrices for task in tasks)
    assert not fused.vectors.keys() - {"bias"}
    if with_factors:
        assert fused.factors["a"].left.shape == (9, 2 * len(with_factors))
        torch.testing.assert_close(fused.difference("a"), expected, rtol=1e-5, atol=1e-4)
    elif fused.matrices:
        assert torch.equal(fused.difference("a"), fused.matrices["a"].to_dense())


@given(task_vectors())
def test_one_task_with_weight_one_is_itself(tasks: list[Fused]) -> None:
    fused = fuse(tasks[:1], [1.0])
    assert torch.equal(fused.factors["a"].left, tasks[0].factors["a"].left)
    assert torch.equal(fused.factors["a"].right, tasks[0].factors["a"].right)
    assert_same(dense(fused), dense(tasks[0]), rtol=0)


@given(task_vectors(), st.integers(2, 4), st.booleans())
def test_equal_tasks_are_one(tasks: list[Fused], times: int, literal: bool) -> None:
    fused = fuse(tasks[:1] * times, [1.0] * times, literal=literal)
    assert_same(dense(fused), dense(tasks[0]), rtol=1e-5)


@given(task_vectors(), st.sampled_from([0.0, 0.5, 2.0, -1.0]))
def test_it_is_linear_in_scale_weights_and_task_vectors(tasks: list[Fused], factor: float) -> None:
    ones = [1.0] * len(tasks)
    plain = {name: factor * tensor for name, tensor in dense(fuse(tasks, ones)).items()}
    assert_same(dense(fuse(tasks, ones, scale=factor)), plain, rtol=1e-5)
    assert_same(dense(fuse(tasks, [factor] * len(tasks))), plain, rtol=1e-5)
    if factor:
        assert_same(dense(fuse([scaled(task, factor) for task in tasks], ones)), plain, rtol=1e-5)


@given(task_vectors(), st.lists(WEIGHTS, min_size=4, max_size=4))
def test_the_order_of_tasks_does_not_matter(tasks: list[Fused], weights: list[float]) -> None:
    weights = weights[: len(tasks)]
    backwards = fuse(tasks[::-1], weights[::-1])
    torch.testing.assert_close(dense(backwards), dense(fuse(tasks, weights)), rtol=1e-5, atol=1e-4)


def test_the_printed_equation_divides_by_the_weights() -> None:
    tasks = [Fused({}, {}, {"a": factors_of(seed)}) for seed in (1, 2)]
    expected = (dense(tasks[0])["a"] + 3 * dense(tasks[1])["a"]) / 4
    for factor in (1.0, 40.0):
        found = fuse(tasks, [factor, 3 * factor], literal=True, scale=7.0)
        torch.testing.assert_close(found.difference("a"), expected)


@pytest.mark.parametrize(("ranks", "whole"), [((4, 5), False), ((5, 5), True), ((9,), False), ((3, 3, 3), False)])
def test_more_ranks_than_the_matrix_has_make_it_dense(ranks: tuple[int, ...], whole: bool) -> None:
    """9 are what it has. Beside them a task without any counts nothing."""
    tasks = [Fused({}, {}, {"a": factors_of(seed, rank)}) for seed, rank in enumerate(ranks)]
    tasks.append(Fused({}, {"bias": torch.ones(3)}))
    fused = fuse(tasks, [1.0] * len(tasks))
    assert ("a" in fused.vectors, "a" in fused.factors) == (whole, not whole)
    differences = torch.stack([task.factors["a"].to_dense() for task in tasks if task.factors])
    counts = (differences != 0).sum(0).clamp(min=1) if whole else len(ranks)
    torch.testing.assert_close(dense(fused)["a"], differences.sum(0) / counts)


def test_kept_entries_become_dense_with_their_factors() -> None:
    rows = as_sparse(torch.eye(9, 10) * 5)
    tasks = [Fused({"a": rows}, {}, {"a": factors_of(seed, 5)}) for seed in (1, 2)]
    fused = fuse(tasks, [1.0, 1.0])
    assert (fused.matrices, fused.factors, set(fused.vectors)) == ({}, {}, {"a"})
    differences = torch.stack([task.difference("a") for task in tasks])
    torch.testing.assert_close(fused.vectors["a"], differences.sum(0) / (differences != 0).sum(0).clamp(min=1))


def test_a_matrix_that_one_task_stores_densely_is_dense() -> None:
    whole, rows = torch.full(SHAPE, 2.0), as_sparse(torch.eye(9, 10))
    tasks = [Fused({"a": rows}, {}, {"a": factors_of(1)}), Fused({}, {"a": whole}), Fused({"a": rows}, {})]
    fused = fuse(tasks, [1.0, 2.0, -1.0])
    assert (fused.matrices, fused.factors, set(fused.vectors)) == ({}, {}, {"a"})
    one = tasks[0].difference("a")
    counts = (one != 0).float() + 1 + torch.eye(9, 10)
    torch.testing.assert_close(fused.vectors["a"], (one + 4 - torch.eye(9, 10)) / counts)


def test_a_convolution_stays_one() -> None:
    shape = (4, 2, 3)
    fused = fuse([Fused({}, {}, {"a": factors_of(seed, 1, shape)}) for seed in (1, 2)], [1.0, 1.0])
    assert fused.factors["a"].shape == fused.difference("a").shape == shape


def test_a_delta_with_factors_is_a_pruned_task_vector() -> None:
    rows, factors = as_sparse(torch.eye(9, 10)), factors_of(1)
    delta = Delta(None, {"a": rows}, {}, {}, {}, {}, factors={"a": factors})  # type: ignore[arg-type]
    assert torch.equal(fuse([delta], [1.0]).difference("a"), delta.difference("a"))


def test_factors_of_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(WrongShape, match="'a' is") as caught:
        Fusion([Fused({}, {}, {"a": factors_of(1)}), Fused({}, {}, {"a": factors_of(1, 2, (10, 9))})])
    assert caught.value.param == "a"


def test_weights_are_found_for_factors() -> None:
    tasks = [Fused({}, {}, {"a": Factors((2, 2), torch.eye(2)[:, [n]], torch.eye(2)[:, [n]])}) for n in (0, 1)]
    target = torch.diag(torch.tensor([0.7, 0.3]))

    def closeness(fused: Fused) -> list[float]:
        return [-float((fused.difference("a") - target).square().sum())]

    result = search_lambdas(tasks, closeness, budget=60, method="cobyla")
    assert result.best.point == pytest.approx((1.4, 0.6), abs=0.03)


def test_kept_entries_count_at_their_places() -> None:
    """As they do where the other task stores the same difference whole."""
    product, rows = factors_of(1), as_sparse(torch.eye(9, 10) * 5)
    apart = fuse([Fused({}, {}, {"a": product}), Fused({"a": rows}, {})], [1.0, 2.0])
    expected = (product.to_dense() + 10 * torch.eye(9, 10)) / (1 + torch.eye(9, 10))
    torch.testing.assert_close(apart.difference("a"), expected)
    with pytest.raises(WrongShape, match="'a' is"):
        Fusion([Fused({}, {}, {"a": factors_of(1, 2, (10, 9))}), Fused({"a": rows}, {})])
