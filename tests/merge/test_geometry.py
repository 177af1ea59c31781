"""Plans from lengths and angles are what the formulas give on dense models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe
from patchbay.merge import CanonicalRecipe, MergePlan, build

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def base(llama: Path) -> Backbone:
    return Backbone.load(llama)


@pytest.fixture(scope="session")
def deltas(llama: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Delta]:
    """Lossless, and far enough from the base that models are not nearly parallel."""
    folder = tmp_path_factory.mktemp("geometry")
    return [
        pico.delta(llama, finetune_folder("llama", seed=s, scale=0.3), folder / f"{s}", density=1.0, values="fp32")
        for s in (1, 2, 3)
    ]


def plan_of(
    base: Backbone, deltas: list[Delta], method: str, weights: tuple[float, ...] = (), **params: object
) -> MergePlan:
    terms = tuple((f"sha256:{number}", weight) for number, weight in enumerate(weights or (1.0,) * len(deltas)))
    recipe = CanonicalRecipe(method, terms, 1.0, tuple(sorted(params.items())), None)  # type: ignore[arg-type]
    return build(recipe, deltas, base).plan


def merged(plan: MergePlan, deltas: list[Delta], base: Backbone) -> Tensors:
    result: Tensors = {}
    for name, matrix in plan.matrices.items():
        total = matrix.base_scale.reshape(-1, 1) * base.stored(name)
        for coefficients, delta in zip(matrix.coefficients, deltas, strict=True):
            total = total + coefficients.reshape(-1, 1) * delta.difference(name)
        result[name] = total
    return result | {name: base.stored(name) + vector for name, vector in plan.vectors.items()}


def tuned(base: Backbone, delta: Delta, name: str) -> torch.Tensor:
    return (base.stored(name) + delta.difference(name)).double()


def arc(one: torch.Tensor, two: torch.Tensor, t: float) -> torch.Tensor:
    cosine = (one * two).sum(-1, keepdim=True) / (one.norm(dim=-1, keepdim=True) * two.norm(dim=-1, keepdim=True))
    angle = torch.acos(cosine.clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * two) / torch.sin(angle)


def check(found: Tensors, expected: Callable[[str], torch.Tensor]) -> None:
    assert len(found) > 5
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected(name).reshape(tensor.shape), rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_the_arc_between_two_models(base: Backbone, deltas: list[Delta], t: float) -> None:
    pair = deltas[:2]

    def expected(name: str) -> torch.Tensor:
        one, two = (tuned(base, delta, name).reshape(-1) for delta in pair)
        cosine = float(one @ two / (one.norm() * two.norm()))
        return (1 - t) * one + t * two if abs(cosine) > 0.9995 else arc(one, two, t)

    check(merged(plan_of(base, pair, "slerp", t=t), pair, base), expected)


def test_slerp_of_neighbours_is_linear(
    base: Backbone, llama: Path, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    near = [
        pico.delta(llama, finetune_folder("llama", seed=s, scale=1e-4), tmp_path / f"{s}", density=1.0, values="fp32")
        for s in (4, 5)
    ]
    check(
        merged(plan_of(base, near, "slerp", t=0.25), near, base),
        lambda name: 0.75 * tuned(base, near[0], name) + 0.25 * tuned(base, near[1], name),
    )


@pytest.mark.parametrize("scope", ["tensor", "neuron"])
def test_nuslerp_is_the_arc_between_two_task_vectors(base: Backbone, deltas: list[Delta], scope: str) -> None:
    pair = deltas[:2]

    def expected(name: str) -> torch.Tensor:
        one, two = (delta.difference(name).double() for delta in pair)
        if scope == "tensor" or one.dim() == 1:
            one, two = one.reshape(-1), two.reshape(-1)
        return base.stored(name).double() + arc(one, two, 0.75).reshape(base.stored(name).shape)

    check(merged(plan_of(base, pair, "nuslerp", (1.0, 3.0), scope=scope), pair, base), expected)


def test_nuslerp_of_one_direction_is_linear(base: Backbone, deltas: list[Delta]) -> None:
    twice = [deltas[0], deltas[0]]
    check(merged(plan_of(base, twice, "nuslerp"), twice, base), lambda name: tuned(base, deltas[0], name))


def test_nuslerp_refuses_another_scope(base: Backbone, deltas: list[Delta]) -> None:
    with pytest.raises(InvalidRecipe, match="tensor or neuron, not 'column'"):
        plan_of(base, deltas[:2], "nuslerp", scope="column")


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_goes_as_far_as_the_angles_say(base: Backbone, deltas: list[Delta], filter_wise: bool) -> None:
    def expected(name: str) -> torch.Tensor:
        taus = [delta.difference(name).double() for delta in deltas]
        rows = taus if filter_wise and taus[0].dim() > 1 else [tau.reshape(1, -1) for tau in taus]
        pairs = [(rows[i], rows[j]) for i in range(3) for j in range(i)]
        cosine = torch.stack([torch.cosine_similarity(a, b, dim=-1, eps=1e-12) for a, b in pairs]).mean(0)
        t = 3 * cosine / (1 + 2 * cosine)
        return base.stored(name).double() + (t.reshape(-1, 1) * torch.stack(rows).mean(0)).reshape(taus[0].shape)

    check(merged(plan_of(base, deltas, "model_stock", filter_wise=filter_wise), deltas, base), expected)
