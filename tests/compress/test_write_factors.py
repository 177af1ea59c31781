"""Parts that keep entries over a low-rank difference: how they are written, scaled, and scored before that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.compress.problems import problem_of
from tests.compress.test_write import MATRIX, check_same_bits, loaded

from patchbay.checkpoint import Checkpoint
from patchbay.compress.distil import Distilled
from patchbay.compress.options import Options
from patchbay.compress.parts import Distils, LowRankPart, Pruner, SparsePart
from patchbay.compress.reconstruct import reconstruct
from patchbay.compress.write import Writer, as_stored, is_prunable
from patchbay.delta import SparseRows
from patchbay.task_vector import TaskVector

ModelFolder = Callable[..., Path]


@dataclass(frozen=True)
class Hybrid:
    """The leading direction of a matrix, and the largest entries of what it leaves."""

    options: Options
    params: Mapping[str, int | float | str | bool] = field(default_factory=dict)
    distils: Distils = "scales"

    def tune(self, density: float) -> None:
        raise NotImplementedError

    def pruner(self, density: float) -> Pruner:
        def prune(_: str, tau: torch.Tensor) -> SparsePart:
            u, s, v = torch.linalg.svd(tau.flatten(1), full_matrices=False)
            bands = ((u[:, :1] * s[:1], v[:1].T, "bf16"), (u[:, 1:3] * s[1:3], v[1:3].T, "int8"))
            rest = (tau.flatten(1) - (u[:, :3] * s[:3]) @ v[:3]).flatten()
            entries = rest.abs().topk(int(density * rest.numel())).indices.sort().values
            return SparsePart(SparseRows(tuple(tau.shape), entries.int(), rest[entries]), "int8", bands=bands)

        return prune


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "resnet"])
def test_kept_entries_over_factors_are_written(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str, exact: bool
) -> None:
    base, tuned = model_folder(name), finetune_folder(name)
    vector, options = TaskVector.from_models(base, tuned), Options(density=0.1, exact=exact)
    method, before = Hybrid(options), pico.weights(base)
    Writer(vector, Checkpoint.open(tuned), options).write(method, 0.1, tmp_path / "d")
    delta, pruner = loaded(base, tmp_path / "d"), method.pruner(0.1)
    matrices = {n for n in vector if is_prunable(vector.specs[n])}
    assert set(delta.factors) == set(delta.matrices) == matrices
    for matrix in sorted(matrices):
        part = pruner(matrix, vector[matrix])
        assert torch.equal(delta.difference(matrix), as_stored(matrix, part))
        torch.testing.assert_close(
            delta.difference(matrix), part.to_dense(), rtol=0, atol=0.02 * float(vector[matrix].abs().max())
        )
    error = sum(float((vector[n] - delta.difference(n)).double().square().sum()) for n in vector)
    norm = sum(float(vector[n].double().square().sum()) for n in vector)
    assert delta.manifest.statistics.relative_error == pytest.approx(math.sqrt(error / norm), rel=1e-6)
    reconstruct(tmp_path / "d", base, tmp_path / "rebuilt")
    if exact:
        assert delta.exceptions.keys() & matrices
        check_same_bits(tmp_path / "rebuilt", tuned)
    else:
        rebuilt = pico.weights(tmp_path / "rebuilt")
        assert all(torch.equal(rebuilt[n], before[n] + delta.difference(n)) for n in matrices)


def test_a_scale_is_of_factors_and_kept_entries_alike(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    vector, options = TaskVector.from_models(llama, llama_tuned), Options(density=0.1)
    writer = Writer(vector, Checkpoint.open(llama_tuned), options)
    writer.write(Hybrid(options), 0.1, tmp_path / "plain")
    writer.write(Hybrid(options), 0.1, tmp_path / "scaled", Distilled(scales={MATRIX: 2.0}))
    plain, scaled = loaded(llama, tmp_path / "plain"), loaded(llama, tmp_path / "scaled")
    for name in plain.matrices:
        factor = 2.0 if name == MATRIX else 1.0
        torch.testing.assert_close(scaled.difference(name), factor * plain.difference(name), rtol=0, atol=1e-6)


def test_a_candidate_is_what_its_parts_say(llama: Path, llama_tuned: Path) -> None:
    """The delta that a search scores, before anything is encoded."""
    tau, empty = pico.weights(llama_tuned)[MATRIX] - pico.weights(llama)[MATRIX], problem_of({})
    part = Hybrid(Options()).pruner(0.1)(MATRIX, tau)
    assert isinstance(part, SparsePart)
    found = empty.candidate({"a": part, "b": LowRankPart((128, 64), part.bands), "c": replace(part, bands=())})
    assert (set(found.matrices), set(found.factors), dict(found.vectors)) == ({"a", "c"}, {"a", "b"}, {})
    for name, rows, bands in (("a", True, True), ("b", False, True), ("c", True, False)):
        alone = sum((left @ right.T for left, right, _ in part.bands), torch.zeros(128, 64)) * bands
        expected = alone + part.rows.to_dense() * rows
        torch.testing.assert_close(found.difference(name), expected, rtol=1e-5, atol=1e-7)
