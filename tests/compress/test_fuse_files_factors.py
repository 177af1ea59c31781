"""Fused files of deltas that store one matrix in different ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.compress.test_fuse_files import INPUTS, decoded
from tests.delta.hybrids import hybrid_file

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Judge
from patchbay.compress.fuse_files import FusionReport, fuse_files
from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe


@pytest.fixture(scope="module")
def base(model_folder: Callable[..., Path]) -> Path:
    return model_folder("bert_classifier")


MATRIX = "bert.encoder.layer.0.intermediate.dense.weight"
BIAS = "bert.encoder.layer.0.intermediate.dense.bias"


def fused(base: Path, folder: Path, *kinds: str) -> tuple[list[Delta], Delta, FusionReport]:
    """Sources and fusion of files that store one matrix as their kinds say, and a bias whole."""
    stored = [{MATRIX: kind, BIAS: "whole"} for kind in kinds]
    files = {f"t{n}": hybrid_file(base, folder / f"{n}", each, seed=n) for n, each in enumerate(stored)}
    report = fuse_files(base, files, folder / "fused", lambdas=[1.5, -0.5, 0.25][: len(kinds)])
    return [decoded(base, file) for file in files.values()], decoded(base, folder / "fused"), report


def check_rounded(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to the bf16 of the values and factors of a fused file."""
    assert float((found - expected).abs().max()) <= 0.02 * float(expected.abs().max())


@pytest.mark.parametrize("kinds", [("low_rank", "low_rank"), ("hybrid", "hybrid"), ("hybrid", "low_rank", "sparse")])
def test_factors_keep_every_entry_and_stay_factors(base: Path, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    tasks, found, report = fused(base, tmp_path, *kinds)
    lambdas = list(zip(report.lambdas.values(), tasks, strict=True))
    stored = [(number * task.difference(MATRIX), task) for number, task in lambdas if MATRIX in task]
    counts = sum(((d != 0).float() if t.is_sparse(MATRIX) else torch.ones_like(d) for d, t in stored), torch.zeros(()))
    check_rounded(found.difference(MATRIX), sum((d for d, _ in stored), torch.zeros(())) / counts.clamp(min=1))
    assert found.factors[MATRIX].rank == 3 * sum(MATRIX in task.factors for task in tasks)
    kept = any(MATRIX in task.matrices for task in tasks)
    assert (MATRIX in found.matrices) is bool(kept) and MATRIX not in found.vectors
    kind = found.manifest.tensors[MATRIX].kind
    assert kind == ("sparse" if kept else "low_rank")
    size = len(found.matrices[MATRIX].positions) if kept else 0
    assert report.density == pytest.approx(size / counts.numel())
    assert 0 < found.manifest.statistics.relative_error < 2**-6


def test_a_matrix_that_one_stores_whole_is_whole(base: Path, tmp_path: Path) -> None:
    tasks, found, _ = fused(base, tmp_path, "hybrid", "whole")
    assert MATRIX in found.vectors and not found.factors and not found.matrices
    one, two = (task.difference(MATRIX) for task in tasks)
    check_rounded(found.difference(MATRIX), (1.5 * one - 0.5 * two) / ((one != 0).float() + (two != 0)).clamp(min=1))


def test_a_fusion_with_factors_rebuilds(base: Path, tmp_path: Path) -> None:
    _, found, _ = fused(base, tmp_path, "hybrid", "low_rank")
    reconstruct(tmp_path / "fused", base, tmp_path / "model")
    after, before = pico.weights(tmp_path / "model"), pico.weights(base)
    assert all(torch.equal(after[name], before[name] + found.difference(name)) for name in (MATRIX, BIAS))


def test_weights_are_searched_over_factors(base: Path, tmp_path: Path) -> None:
    stored = [{"bert.pooler.dense.weight": "low_rank"}] * 2
    files = {f"t{n}": hybrid_file(base, tmp_path / f"{n}", kinds, seed=n) for n, kinds in enumerate(stored)}
    report = fuse_files(base, files, tmp_path / "out", calibrations=dict.fromkeys(files, INPUTS), evaluations=5)
    backbone = Backbone.load(base, device="cpu")
    judges = [Judge(backbone, decoded(base, file), INPUTS) for file in files.values()]
    score = sum(judge.score(decoded(base, tmp_path / "out")) for judge in judges) / 2
    assert report.evaluations == 5
    assert report.score == pytest.approx(score, rel=0.05)  # before rounding


def test_a_fusion_that_no_reader_would_take_is_refused_and_leaves_what_was_there(base: Path, tmp_path: Path) -> None:
    """Factors near the end of fp32, times ten."""
    large = hybrid_file(base, tmp_path / "t0", {MATRIX: "low_rank"}, scale=2.0**60)
    files = {"t0": large, "t1": hybrid_file(base, tmp_path / "t1", {MATRIX: "low_rank"})}
    before = (tmp_path / "t1").read_bytes()
    with pytest.raises(InvalidRecipe, match="choose smaller ones") as refused:
        fuse_files(base, files, tmp_path / "t1", lambdas=[10.0, 1.0])
    assert refused.value.param == "lambdas"
    assert (tmp_path / "t1").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"t0", "t1"}


def test_the_folder_of_a_fusion_is_made(base: Path, tmp_path: Path) -> None:
    file = hybrid_file(base, tmp_path / "t0", {MATRIX: "sparse"})
    report = fuse_files(base, {"t0": file}, tmp_path / "new" / "folder" / "fused")
    assert Path(report.path).stat().st_size == report.num_bytes
