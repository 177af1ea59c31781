"""NPS fusion against its formula on dense tensors, and the laws that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.compress.fusion import Fused, Fusion, PrunedTaskVector, fuse, search_lambdas
from patchbay.compress.search import Evaluation
from patchbay.delta import Delta, SparseRows
from patchbay.errors import InvalidRecipe, WrongShape

SHAPE = (4, 5)
VALUES = st.sampled_from([0.0, 0.0, 0.0, 0.5, -0.25, 1.0, 3.0, -7.0])  # exact in fp32; zeros are not kept
WEIGHTS = st.sampled_from([0.1, 0.5, 1.0, 1.3, 3.9, -1.0])


def as_sparse(dense: torch.Tensor, *, with_zeros: bool = False, dtype: torch.dtype = torch.int32) -> SparseRows:
    flat = dense.flatten()
    positions = torch.arange(len(flat)) if with_zeros else flat.nonzero().flatten()
    return SparseRows(tuple(dense.shape), positions.to(dtype), flat[positions])


@st.composite
def task_vectors(draw: st.DrawFn) -> list[Fused]:
    """One to four tasks: a matrix of each, one that some lack, a bias of each and one that some lack."""
    tasks = []
    for _ in range(draw(st.integers(1, 4))):
        draws = [torch.tensor(draw(st.lists(VALUES, min_size=20, max_size=20))) for _ in range(2)]
        stored = [as_sparse(values.reshape(SHAPE), with_zeros=draw(st.booleans())) for values in draws]
        biases = [torch.tensor(draw(st.lists(VALUES, min_size=3, max_size=3))) for _ in range(2)]
        lacking = draw(st.booleans())
        tasks.append(
            Fused(
                {"a": stored[0]} if lacking else {"a": stored[0], "b": stored[1]},
                {"bias": biases[0]} if lacking else {"bias": biases[0], "other": biases[1]},
            )
        )
    return tasks


def dense(task: PrunedTaskVector) -> dict[str, torch.Tensor]:
    """Every difference as a whole."""
    total = {name: rows.to_dense() for name, rows in task.matrices.items()} | dict(task.vectors)
    for name, factors in task.factors.items():
        total[name] = total.get(name, torch.zeros(factors.shape)) + factors.left @ factors.right.T
    return total


def by_formula(tasks: Sequence[PrunedTaskVector], weights: Sequence[float], scale: float) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    count: dict[str, torch.Tensor] = {}
    for weight, task in zip(weights, tasks, strict=True):
        for name, tau in dense(task).items():
            total[name] = total.get(name, torch.zeros_like(tau).double()) + weight * tau.double()
            count[name] = count.get(name, torch.zeros_like(tau)) + (tau != 0)
    return {name: (scale * total[name] / count[name].clamp(min=1)).float() for name in total}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], *, rtol: float = 1e-6) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=rtol, atol=1e-6)


@given(task_vectors(), st.lists(WEIGHTS, min_size=4, max_size=4), WEIGHTS)
def test_the_formula(tasks: list[Fused], weights: list[float], scale: float) -> None:
    weights = weights[: len(tasks)]
    assert_same(dense(fuse(tasks, weights, scale=scale)), by_formula(tasks, weights, scale))


@given(task_vectors())
def test_the_result_is_sparse_and_in_order(tasks: list[Fused]) -> None:
    fused = fuse(tasks, [1.0] * len(tasks))
    for name, rows in fused.matrices.items():
        kept = sum((task.matrices[name].to_dense() != 0) for task in tasks if name in task.matrices)
        assert isinstance(kept, torch.Tensor)
        assert rows.positions.tolist() == kept.flatten().nonzero().flatten().tolist()
        assert rows.positions.dtype == torch.int32
        assert rows.values.dtype == torch.float32
    assert all(vector.dtype == torch.float32 for vector in fused.vectors.values())


@given(task_vectors())
def test_one_task_with_weight_one_is_itself(tasks: list[Fused]) -> None:
    assert_same(dense(fuse(tasks[:1], [1.0])), dense(tasks[0]), rtol=0)


@given(task_vectors(), st.lists(WEIGHTS, min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(tasks: list[Fused], weights: list[float], random: st.DataObject) -> None:
    order = list(range(len(tasks)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = fuse([tasks[i] for i in order], [weights[i] for i in order])
    assert_same(dense(shuffled), dense(fuse(tasks, weights[: len(tasks)])))


@given(task_vectors(), st.sampled_from([0.0, 0.5, 2.0, -1.0]))
def test_it_is_linear_in_scale_weights_and_task_vectors(tasks: list[Fused], factor: float) -> None:
    ones = [1.0] * len(tasks)
    plain = {name: factor * tensor for name, tensor in dense(fuse(tasks, ones)).items()}
    assert_same(dense(fuse(tasks, ones, scale=factor)), plain)
    assert_same(dense(fuse(tasks, [factor] * len(tasks))), plain)
    if factor:
        scaled = [
            Fused(
                {n: SparseRows(r.shape, r.positions, factor * r.values) for n, r in task.matrices.items()},
                {n: factor * vector for n, vector in task.vectors.items()},
            )
            for task in tasks
        ]
        assert_same(dense(fuse(scaled, ones)), plain)


def test_disjoint_supports_add_up() -> None:
    taus = [torch.zeros(SHAPE) for _ in range(3)]
    for number, tau in enumerate(taus):
        tau[number] = torch.tensor([1.0, -2, 3, -4, 5]) * (number + 1)
    fused = fuse([Fused({"a": as_sparse(tau)}, {"bias": tau.flatten()}) for tau in taus], [1.0] * 3)
    assert torch.equal(fused.matrices["a"].to_dense(), sum(taus, torch.zeros(SHAPE)))
    assert torch.equal(fused.vectors["bias"], sum(taus, torch.zeros(SHAPE)).flatten())


def test_worked_example() -> None:
    one = Fused({"a": as_sparse(torch.tensor([[0.5, -0.4, 0.9, -0.6, 0, 0, 0, 0]]))}, {"b": torch.tensor([1.0, 0])})
    two = Fused({"a": as_sparse(torch.tensor([[0.0, 0.4, 0.3, 0, 0.2, 0, 0, 0]]))}, {"b": torch.tensor([3.0, 2])})
    fused = fuse([one, two], [1.0, 2.0], scale=1.2)
    expected = [0.6, 0.24, 0.9, -0.72, 0.48, 0, 0, 0]
    assert fused.matrices["a"].to_dense()[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert fused.matrices["a"].positions.tolist() == [0, 1, 2, 3, 4]
    assert fused.vectors["b"].tolist() == pytest.approx([4.2, 4.8], rel=1e-6)
    literal = fuse([one, two], [1.0, 2.0], literal=True)
    assert literal.matrices["a"].values.tolist() == pytest.approx([0.5 / 3, 0.4 / 3, 0.5, -0.2, 0.4 / 3], rel=1e-6)
    assert literal.vectors["b"].tolist() == pytest.approx([7 / 3, 4 / 3], rel=1e-6)


@given(task_vectors(), st.sampled_from([0.25, 1.9, 40.0, -1.0]))
def test_a_common_factor_cancels_in_the_printed_equation(tasks: list[Fused], factor: float) -> None:
    weights = [1.0, 2.0, 0.5, 1.2][: len(tasks)]
    plain = dense(fuse(tasks, weights, literal=True))
    assert_same(dense(fuse(tasks, [factor * weight for weight in weights], literal=True)), plain)
    assert_same(dense(fuse(tasks, weights, scale=factor, literal=True)), plain)


def test_a_matrix_that_one_task_stores_densely_is_dense() -> None:
    tau = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    fused = fuse([Fused({"a": as_sparse(tau)}, {}), Fused({}, {"a": torch.ones(2, 2)})], [1.0, 1.0])
    assert fused.matrices == {}
    assert fused.vectors["a"].tolist() == [[1.0, 1.0], [1.0, -0.5]]


def test_positions_of_either_width_fuse() -> None:
    tau = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    wide = as_sparse(tau, dtype=torch.int64)
    fused = fuse([Fused({"a": as_sparse(tau)}, {}), Fused({"a": wide}, {})], [1.0, 3.0])
    assert fused.matrices["a"].to_dense().tolist() == [[2.0, 0.0], [0.0, -4.0]]


def test_a_delta_is_a_pruned_task_vector(small_delta: Delta) -> None:
    assert_same(dense(fuse([small_delta, small_delta], [1.0, 1.0])), dense(small_delta), rtol=0)


@pytest.fixture
def small_delta() -> Delta:
    tau = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    manifest = object()  # which fusion must not look at
    return Delta(manifest, {"a": as_sparse(tau)}, {"bias": torch.ones(2)}, {}, {}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"a": as_sparse(torch.ones(5, 4))}, {}])
def test_shapes_that_differ_are_refused_by_name(other: dict[str, SparseRows]) -> None:
    one = Fused({"a": as_sparse(torch.ones(SHAPE))}, {"bias": torch.ones(3)})
    with pytest.raises(WrongShape, match="'a' is|'bias' is") as caught:
        Fusion([one, Fused(other, {"bias": torch.ones(3 if other else 4)})])
    assert caught.value.param == ("a" if other else "bias")


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, math.inf], [1.0, 2.0, 3.0]])
def test_weights_that_do_not_fit(weights: list[float]) -> None:
    task = Fused({"a": as_sparse(torch.ones(SHAPE))}, {})
    with pytest.raises(InvalidRecipe):
        fuse([task, task], weights)


def test_nothing_to_fuse() -> None:
    task = Fused({"a": as_sparse(torch.ones(SHAPE))}, {})
    with pytest.raises(InvalidRecipe):
        fuse([], [])
    with pytest.raises(InvalidRecipe, match="sum to"):
        fuse([task, task], [1.0, -1.0], literal=True)
    with pytest.raises(InvalidRecipe):
        fuse([task], [1.0], scale=math.nan)


TARGET = torch.tensor([[1.5, 0.0, 0.0], [0.0, 0.7, 1.1]])


def three_tasks() -> list[Fused]:
    """Three entries, one task each; the best weights are 1.5, .7 and 1.1."""
    parts = [torch.zeros(2, 3) for _ in range(3)]
    for part, (row, column) in zip(parts, [(0, 0), (1, 1), (1, 2)], strict=True):
        part[row, column] = 1
    return [Fused({"a": as_sparse(part)}, {}) for part in parts]


def closeness(fused: Fused) -> list[float]:
    """One score a row, as if each row were a task's validation set."""
    return [-x for x in (fused.matrices["a"].to_dense() - TARGET).square().sum(1).tolist()]


@pytest.mark.parametrize("method", ["cobyla", "cmaes"])
def test_lambdas_are_found(method: str) -> None:
    budget = 45 if method == "cobyla" else 250
    result = search_lambdas(three_tasks(), closeness, budget=budget, method=method)  # type: ignore[arg-type]
    assert result.best.point == pytest.approx((1.5, 0.7, 1.1), abs=0.02)
    first = result.evaluations[0]
    assert first.point == (1.0, 1.0, 1.0)
    assert first.score == pytest.approx(-(0.25 + 0.09 + 0.01) / 2)
    assert len(result.evaluations) <= budget


def test_lambdas_pass_everything_on() -> None:
    """Scale, start, bounds, seed, history and the observer."""
    seen: list[Evaluation] = []
    bounds = [(0.8, 1.3)] * 3

    def run(budget: int, history: Sequence[Evaluation] = ()) -> tuple[Evaluation, ...]:
        return search_lambdas(
            three_tasks(),
            closeness,
            budget=budget,
            scale=2.0,
            start=(0.9, 0.9, 0.9),
            method="cmaes",
            bounds=bounds,
            seed=5,
            history=history,
            on_evaluation=seen.append,
        ).evaluations

    whole = run(20)
    assert whole[0].score == pytest.approx(-((1.8 - 1.5) ** 2 + (1.8 - 0.7) ** 2 + (1.8 - 1.1) ** 2) / 2)
    assert all(0.8 <= x <= 1.3 for evaluation in whole for x in evaluation.point)
    seen.clear()
    assert run(20, whole[:12]) == whole
    assert tuple(seen) == whole[12:]
    assert {
        evaluation.point
        for evaluation in search_lambdas(
            three_tasks(), closeness, budget=20, start=(0.9, 0.9, 0.9), method="cmaes", bounds=bounds, seed=6
        ).evaluations[1:]
    }.isdisjoint(evaluation.point for evaluation in whole[1:])
