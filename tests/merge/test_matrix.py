"""Inner products that are taken from sparse and factored deltas are those of the dense tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.delta.hybrids import KINDS, hybrid_delta

from patchbay.backbone import Backbone
from patchbay.delta import Delta, NeuronStatistics
from patchbay.merge.matrix import Matrix

ModelFolder = Callable[..., Path]
WEIGHTS = torch.tensor([1.0, 0.5, -2.0])


def rows_of(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.double().movedim(axis, 0).flatten(1)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="session", params=["llama", "gpt2", "vit"])
def backbone(request: pytest.FixtureRequest, model_folder: ModelFolder) -> Backbone:
    return Backbone.load(model_folder(request.param))


def matrices(backbone: Backbone) -> list[str]:
    return [name for name, spec in backbone.specs.items() if spec.is_matrix and len(spec.shape) > 1]


def deltas_of(backbone: Backbone, folder: Path, *kinds: str) -> list[Delta]:
    """One delta a kind, over all matrices."""
    return [
        hybrid_delta(backbone.folder, folder / f"{seed}", dict.fromkeys(matrices(backbone), kind), seed=seed)
        for seed, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("kinds", [("sparse",) * 3, KINDS, ("sparse", "whole")], ids=str)
@pytest.mark.parametrize("whole", [False, True], ids=["neurons", "flattened"])
def test_inner_products_are_those_of_dense_tensors(
    backbone: Backbone, tmp_path: Path, kinds: tuple[str, ...], whole: bool
) -> None:
    deltas = deltas_of(backbone, tmp_path, *kinds)
    for name in matrices(backbone):
        axis = backbone.specs[name].neuron_axis or 0
        matrix = Matrix(name, deltas, WEIGHTS, backbone, whole=whole)
        base = rows_of(backbone.stored(name), axis)
        taus = torch.stack([rows_of(delta.difference(name), axis) for delta in deltas], 1)
        if whole:
            base, taus = base.reshape(1, -1), taus.movedim(1, 0).reshape(1, len(deltas), -1)
        assert matrix.num_neurons == len(base)
        same(matrix.base_energy, base.square().sum(1))
        same(matrix.projections, (taus @ base[:, :, None]).squeeze(-1))
        same(matrix.gram, taus @ taus.mT)


def test_a_term_that_does_not_change_the_tensor_has_none(backbone: Backbone, tmp_path: Path) -> None:
    one, two = deltas_of(backbone, tmp_path, "sparse", "whole")
    name = matrices(backbone)[0]
    absent = replace(one, matrices={other: rows for other, rows in one.matrices.items() if other != name})
    for deltas in ([absent, one], [absent, two]):
        matrix = Matrix(name, deltas, WEIGHTS[:2], backbone)
        assert not matrix.gram[:, 0].any() and not matrix.projections[:, 0].any()
        assert matrix.gram[:, 1, 1].any()


def with_statistics(delta: Delta, names: list[str], *, method: str) -> Delta:
    """Statistics that no delta's own entries would give."""
    found = {
        name: NeuronStatistics(torch.full((len(rows_of(delta.difference(name), 0)),), 3.0), torch.tensor(0.5))
        for name in names
    }
    compression = delta.manifest.compression.model_copy(update={"method": method, "seed": 1})
    return replace(delta, neurons=found, manifest=delta.manifest.model_copy(update={"compression": compression}))


def test_of_a_sampled_delta_length_and_projection_are_the_whole_fine_tunes(llama: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(llama)
    one, two = deltas_of(backbone, tmp_path, "sparse", "sparse")
    names = matrices(backbone)
    sampled = Matrix(names[0], [with_statistics(one, names, method="nps"), two], WEIGHTS[:2], backbone)
    plain = Matrix(names[0], [one, two], WEIGHTS[:2], backbone)
    assert (sampled.gram[:, 0, 0] == 3).all()
    same(sampled.gram[:, 0, 1], plain.gram[:, 0, 1])
    same(sampled.gram[:, 1, 1], plain.gram[:, 1, 1])
    same(sampled.projections[:, 0], 0.5 * (3 * plain.base_energy).sqrt())
    same(sampled.flattened().gram[:, 0, 0], sampled.gram[:, 0, 0].sum().reshape(1))
    same(sampled.flattened().projections[:, 0], sampled.projections[:, 0].sum().reshape(1))


def test_where_the_largest_were_kept_those_are_what_is_merged(llama: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(llama)
    (one,) = deltas_of(backbone, tmp_path, "sparse")
    names = matrices(backbone)
    kept = Matrix(names[0], [with_statistics(one, names, method="magnitude")], WEIGHTS[:1], backbone)
    same(kept.gram, Matrix(names[0], [one], WEIGHTS[:1], backbone).gram)


def test_sigma_is_that_of_the_term_that_lost_most(llama: Path, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    backbone = Backbone.load(llama)
    deltas = [
        pico.delta(llama, finetune_folder("llama", seed=s), tmp_path / f"{s}", density=d)
        for s, d in ((1, 0.5), (2, 0.1))
    ]
    matrix = Matrix(matrices(backbone)[0], deltas, WEIGHTS[:2], backbone)
    assert matrix.sigma == max(delta.manifest.statistics.sigma for delta in deltas) > 0.5


def test_nothing_is_missing_in_what_was_pruned_at_random(
    llama: Path, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    """Its kept entries stand for the others: where only such terms lost anything, there is nothing to restore."""
    backbone = Backbone.load(llama)
    ranked = pico.delta(llama, finetune_folder("llama", seed=1), tmp_path / "d", density=0.1)
    name = matrices(backbone)[0]
    sampled = with_statistics(ranked, [name], method="random")
    lost = ranked.manifest.statistics.sigma
    assert lost > 0.5
    assert Matrix(name, [sampled], WEIGHTS[:1], backbone).sigma == 0
    assert Matrix(name, [sampled, ranked], WEIGHTS[:2], backbone).sigma == lost
