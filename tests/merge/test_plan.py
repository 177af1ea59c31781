"""A plan is what the method says in formula, computed here on the dense tensors of the deltas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import pico
from tests.delta.hybrids import KINDS, hybrid_delta

from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe, UnknownMethod
from patchbay.merge import METHODS, MergePlan

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
NUM_BATCHES = "resnet.embedder.embedder.normalization.num_batches_tracked"
WEIGHT = st.floats(-10, 10, width=32)


@pytest.fixture(scope="session")
def deltas(llama: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Delta]:
    """Two lossless deltas, over all tensors, and a third that touches a few entries only."""
    folder = tmp_path_factory.mktemp("deltas")
    whole = [
        pico.delta(llama, finetune_folder("llama", seed=s), folder / f"{s}", density=1.0, values="fp32") for s in (1, 2)
    ]
    return [*whole, pico.delta(llama, finetune_folder("llama", seed=3), folder / "3", density=0.05)]


def merged(plan: MergePlan, deltas: list[Delta], base: Tensors) -> Tensors:
    """The model that a plan of the linear methods stands for."""
    result = dict(base)
    for name, matrix in plan.matrices.items():
        pairs = zip(matrix.coefficients[:, 0], deltas, strict=True)
        parts = [(c, delta) for c, delta in pairs if name in delta]
        result[name] = matrix.base_scale * base[name] + sum(c * delta.difference(name) for c, delta in parts)
    return result | {name: base[name] + vector for name, vector in plan.vectors.items()}


def check_close(left: Tensors, right: Tensors) -> None:
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=2e-6, msg=name)


def test_linear_is_the_mean_of_the_fine_tunes(llama: Path, finetune_folder: ModelFolder, deltas: list[Delta]) -> None:
    base = pico.weights(llama)
    one, two = (pico.weights(finetune_folder("llama", seed=s)) for s in (1, 2))
    plan = pico.plan(deltas[:2], [1.0, 1.0], "linear")
    check_close(merged(plan, deltas[:2], base), {name: (one[name] + two[name]) / 2 for name in base})
    plan = pico.plan(deltas[:2], [3.0, 1.0], "linear")
    check_close(merged(plan, deltas[:2], base), {name: 0.75 * one[name] + 0.25 * two[name] for name in base})


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_task_arithmetic_adds_task_vectors(
    llama: Path, finetune_folder: ModelFolder, deltas: list[Delta], scale: float
) -> None:
    base = pico.weights(llama)
    one, two = (pico.weights(finetune_folder("llama", seed=s)) for s in (1, 2))
    plan = pico.plan(deltas[:2], [0.6, -0.4], scale=scale)
    expected = {n: base[n] + scale * (0.6 * (one[n] - base[n]) - 0.4 * (two[n] - base[n])) for n in base}
    check_close(merged(plan, deltas[:2], base), expected)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_one_term_interpolates_between_base_and_fine_tune(
    llama: Path, llama_tuned: Path, deltas: list[Delta], weight: float
) -> None:
    base, tuned = pico.weights(llama), pico.weights(llama_tuned)
    plan = pico.plan(deltas[:1], [weight])
    expected = {name: (1 - weight) * base[name] + weight * tuned[name] for name in base}
    check_close(merged(plan, deltas[:1], base), expected)


@given(st.lists(WEIGHT, min_size=3, max_size=3), st.floats(0, 2, width=32))
def test_plan_holds_what_the_recipe_says(deltas: list[Delta], weights: list[float], scale: float) -> None:
    plan = pico.plan(deltas, weights, scale=scale)
    expected = torch.tensor(weights) * scale
    assert plan.terms == tuple(delta.manifest.payload_sha256 for delta in deltas)
    assert set(plan.matrices) == {name for delta in deltas for name in delta.matrices}
    assert set(plan.vectors) == {name for delta in deltas for name in delta.vectors}
    for matrix in plan.matrices.values():
        torch.testing.assert_close(matrix.coefficients.flatten(), expected)
        assert matrix.base_scale.tolist() == [1.0]
    for name, vector in plan.vectors.items():
        parts = zip(expected.double(), deltas, strict=True)
        reference = sum(weight * delta.vectors[name].double() for weight, delta in parts)
        torch.testing.assert_close(vector.double(), reference, rtol=0, atol=1e-6)


def test_deltas_of_different_tensors_are_united(llama: Path, tmp_path: Path) -> None:
    def change(name: str) -> Callable[[Tensors], Tensors]:
        return lambda tensors: {**tensors, name: tensors[name] + 0.5}

    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"]
    parts = []
    for number, name in enumerate(names):
        tuned = pico.rewrite(llama, tmp_path / f"{number}", change(name))
        parts.append(pico.delta(llama, tuned, tmp_path / f"d{number}", values="fp32", density=1.0))
    plan = pico.plan(parts, [1.0, 2.0, 3.0])
    assert list(plan.matrices) == [names[1]]
    assert plan.matrices[names[1]].coefficients.flatten().tolist() == [1.0, 2.0, 3.0]
    assert set(plan.vectors) == {names[0], names[2]}
    torch.testing.assert_close(plan.vectors[names[2]], torch.full((pico.HIDDEN,), 1.5))


UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("kind", ["hybrid", "low_rank"])
@pytest.mark.parametrize("weights", [[1.0], [0.5], [1.0, 1.0]])
def test_what_has_factors_is_a_matrix(llama: Path, tmp_path: Path, kind: str, weights: list[float]) -> None:
    """So that its neurons can have coefficients of their own; nothing is multiplied out for the plan."""
    kinds = {UP: kind, "model.norm.weight": "whole"}
    parts = [hybrid_delta(llama, tmp_path / f"{n}", kinds, seed=n) for n, _ in enumerate(weights)]
    plan = pico.plan(parts, weights)
    assert (list(plan.matrices), list(plan.vectors)) == ([UP], ["model.norm.weight"])
    assert plan.matrices[UP].coefficients.tolist() == [[weight] for weight in weights]
    assert plan.num_bytes == 4 * (1 + len(weights)) + plan.vectors["model.norm.weight"].nbytes
    assert plan.exact is (weights == [1.0])


@pytest.mark.parametrize("kinds", list(permutations(KINDS, 2)), ids="-".join)
def test_a_tensor_is_a_matrix_for_all_where_it_is_for_one(llama: Path, tmp_path: Path, kinds: tuple[str, str]) -> None:
    stored = [{UP: kinds[0]}, {UP: kinds[1], DOWN: kinds[1]}]
    parts = [hybrid_delta(llama, tmp_path / f"{n}", each, seed=n) for n, each in enumerate(stored)]
    plan, base = pico.plan(parts, [0.25, -2.0]), pico.weights(llama)
    assert not plan.matrices.keys() & plan.vectors.keys()
    assert set(plan.matrices) == {UP} | ({DOWN} if kinds[1] != "whole" else set())
    expected = base | {
        UP: base[UP] + 0.25 * parts[0].difference(UP) - 2 * parts[1].difference(UP),
        DOWN: base[DOWN] - 2 * parts[1].difference(DOWN),
    }
    check_close(merged(plan, parts, base), expected)


@pytest.mark.parametrize(
    ("method", "weights", "scale", "exact"),
    [
        ("task_arithmetic", [1.0], 1.0, True),
        ("task_arithmetic", [0.5], 2.0, True),
        ("linear", [0.3], 1.0, True),
        ("task_arithmetic", [0.999], 1.0, False),
        ("task_arithmetic", [1.0], -1.0, False),
        ("linear", [1.0], 0.5, False),
        ("task_arithmetic", [1.0, 0.0], 1.0, False),
        ("linear", [1.0, 1.0], 1.0, False),
    ],
)
def test_exact_is_one_whole_delta(
    deltas: list[Delta], method: str, weights: list[float], scale: float, exact: bool
) -> None:
    assert pico.plan(deltas[: len(weights)], weights, method, scale).exact is exact


def counted(model_folder: ModelFolder, tmp_path: Path, counts: list[int | None]) -> list[Delta]:
    """Fine-tunes of a ResNet; None leaves the counter as it is."""
    base, parts = model_folder("resnet"), []
    for number, count in enumerate(counts):

        def change(tensors: Tensors, count: int | None = count, number: int = number) -> Tensors:
            tensors["classifier.1.bias"] += 1 + number
            return tensors if count is None else {**tensors, NUM_BATCHES: torch.tensor(count)}

        tuned = pico.rewrite(base, tmp_path / f"{number}", change)
        parts.append(pico.delta(base, tuned, tmp_path / f"d{number}"))
    return parts


@pytest.mark.parametrize(
    ("counts", "expected"), [([7, 7], 7), ([7, None], 7), ([7, 8], None), ([7, 8, 7], None), ([None, None], None)]
)
def test_copied_tensors_hold_where_all_agree(
    model_folder: ModelFolder, tmp_path: Path, counts: list[int | None], expected: int | None
) -> None:
    parts = counted(model_folder, tmp_path, counts)
    copied = pico.plan(parts, [1.0] * len(parts)).copied
    assert {n: t.item() for n, t in copied.items()} == ({} if expected is None else {NUM_BATCHES: expected})


def test_unknown_method(deltas: list[Delta]) -> None:
    with pytest.raises(UnknownMethod, match=", ".join(METHODS)):
        pico.plan(deltas[:1], [1.0], "averaging")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_unknown_parameter(deltas: list[Delta], method: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        pico.plan(deltas[:1], [1.0], method, temperature=0.5)
    assert caught.value.param == "params.temperature"


def test_mean_of_weights_that_cancel(deltas: list[Delta]) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        pico.plan(deltas[:2], [0.5, -0.5], "linear")
    assert caught.value.param == "terms"


def test_deltas_of_different_bases(deltas: list[Delta]) -> None:
    manifest = deltas[1].manifest
    other = manifest.base.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    foreign = replace(deltas[1], manifest=manifest.model_copy(update={"base": other}))
    with pytest.raises(InvalidRecipe, match="different bases"):
        pico.plan([deltas[0], foreign], [1.0, 1.0])


def test_num_bytes_counts_shared_coefficients_once(deltas: list[Delta]) -> None:
    plan = pico.plan(deltas, [1.0, 2.0, 3.0])
    assert len(plan.matrices) > 1
    assert plan.num_bytes == 4 * (1 + 3) + sum(vector.nbytes for vector in plan.vectors.values())


def test_hash_is_the_recipes(deltas: list[Delta]) -> None:
    hashes = [pico.plan(deltas[:1], [weight]).hash for weight in (0.5, 0.5, 0.6)]
    assert hashes[0] == hashes[1] != hashes[2]
