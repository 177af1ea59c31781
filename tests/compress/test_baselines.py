"""What each compared method keeps, by its paper's definition, in memory and in its file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import pico
from tests.compress.problems import flat, parts_of, random_tensors, tensors, texts

from patchbay.compress.baselines import LOW_RANK_BITS, MAX_SCALE
from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Options, compress
from patchbay.compress.low_rank import stored_bytes
from patchbay.compress.parts import DensePart, LowRankPart, SparsePart
from patchbay.compress.search import Evaluation
from patchbay.delta import DeltaFile
from patchbay.delta.codecs import seeded_positions
from patchbay.delta.encode import Streams
from patchbay.errors import InvalidRecipe

ModelFolder = Callable[..., Path]
MATRICES = random_tensors(seed=8, a=(40, 30), b=(16, 64), c=(8, 4, 5, 5))


def whole(matrices: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([matrices[name].flatten() for name in sorted(matrices)])


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, -1.5])
def test_magnitude_keeps_the_largest_times_its_scale(density: float, scale: float) -> None:
    kept = flat(parts_of(MATRICES, density, method="magnitude", scale=scale))
    tau = whole(MATRICES)
    number = math.floor(density * len(tau))
    chosen = torch.argsort(tau.abs(), descending=True)[:number]
    expected = torch.zeros(len(tau))
    expected[chosen] = scale * tau[chosen]
    assert torch.equal(kept, expected)


@pytest.mark.parametrize(("values", "expected"), [("auto", "int4"), ("bf16", "bf16"), ("sign", "sign")])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_values_are_four_bits_unless_asked(method: str, values: str, expected: str) -> None:
    assert {part.values for part in parts_of(MATRICES, 0.1, method=method, values=values).values()} == {expected}


@given(tensors(), st.floats(0, 1), st.integers(0, 2**32))
def test_random_is_drawn_again_from_its_seed(vector: dict[str, torch.Tensor], density: float, seed: int) -> None:
    total = sum(tensor.numel() for tensor in vector.values())
    kept = parts_of(vector, density, method="random", seed=seed)
    number = sum(len(part.rows.positions) for part in kept.values() if isinstance(part, SparsePart))
    assert abs(number - density * total) < 1
    for name, part in kept.items():
        assert isinstance(part, SparsePart)
        assert part.seed is not None
        drawn = seeded_positions(part.seed, len(part.rows.positions), vector[name].numel())
        assert part.rows.positions.tolist() == drawn.tolist()
        expected = vector[name].flatten()[part.rows.positions] * (total / max(1, number))
        torch.testing.assert_close(part.rows.values, expected)


def test_random_positions_take_eight_bytes_a_matrix(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", method="random", density=0.3, seed=3, values="fp32")
    file = DeltaFile.open(tmp_path / "d")
    assert file.itemised()["positions"] <= 8 * len(delta.matrices) + 64
    before, after = pico.weights(llama), pico.weights(llama_tuned)
    for name, rows in delta.matrices.items():
        entry = file.manifest.tensors[name]
        assert entry.kind == "sparse"
        assert entry.positions == "seeded"
        tau = (after[name] - before[name]).flatten()[rows.positions.long()]
        torch.testing.assert_close(rows.values, tau / 0.3, rtol=1e-3, atol=0)


def test_bitdelta_is_a_sign_and_the_mean_magnitude_of_a_row(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    for name, part in parts_of(MATRICES, 0.5, method="bitdelta").items():
        assert isinstance(part, DensePart)
        rows = MATRICES[name].flatten(1)
        expected = rows.sign() * rows.abs().mean(1, keepdim=True)
        torch.testing.assert_close(part.difference.flatten(1), expected)
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", method="bitdelta")
    before, after = pico.weights(llama), pico.weights(llama_tuned)
    matrices = [name for name, tensor in before.items() if tensor.numel() >= 4096]
    assert matrices
    for name in matrices:
        tau = after[name] - before[name]
        expected = torch.copysign(tau.abs().mean(1, keepdim=True), tau)
        torch.testing.assert_close(delta.vectors[name], expected, rtol=2**-10, atol=0)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
def test_low_rank_stays_within_its_bits(density: float) -> None:
    for name, part in parts_of(MATRICES, density, method="low_rank").items():
        shape = (len(MATRICES[name]), MATRICES[name][0].numel())
        allowed = LOW_RANK_BITS * density * MATRICES[name].numel() / 8
        if isinstance(part, SparsePart):
            assert (len(part.rows.positions), allowed < 64 * 8) == (0, True)
            continue
        assert isinstance(part, LowRankPart)
        assert part.to_dense().shape == part.shape == MATRICES[name].shape
        assert sum(stored_bytes(values, left.shape[1], shape) for left, _, values in part.bands) <= allowed


def test_more_bits_are_nearer() -> None:
    def error(density: float) -> float:
        parts = parts_of(MATRICES, density, method="low_rank")
        near = [part.to_dense() if isinstance(part, LowRankPart) else 0 for part in parts.values()]
        return sum(float((MATRICES[n] - there).square().sum()) for n, there in zip(parts, near, strict=True))

    errors = [error(density) for density in (0.0, 0.1, 0.3, 1.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(float(whole(MATRICES).square().sum()), rel=1e-5)


def test_low_rank_of_nothing() -> None:
    part = parts_of({"a": torch.zeros(70, 70)}, 0.5, method="low_rank")["a"]
    assert isinstance(part, SparsePart)
    assert len(part.rows.positions) == 0
    Streams().add_sparse("a", part.rows, part.values, torch.float32)


@pytest.mark.parametrize("name", ["resnet", "vit", "gpt2"])
def test_low_rank_files_can_be_read(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    """Convolutions too, which are factored as [out, everything else]."""
    base, tuned = model_folder(name), finetune_folder(name)
    delta = pico.delta(base, tuned, tmp_path / "d", method="low_rank", density=1.0)
    before, after = pico.weights(base), pico.weights(tuned)
    matrices = [n for n, entry in delta.manifest.tensors.items() if entry.kind == "low_rank"]
    assert matrices
    for matrix in matrices:
        tau = after[matrix] - before[matrix]
        assert delta.difference(matrix).shape == tau.shape
        assert float((delta.difference(matrix) - tau).norm()) < 0.7 * float(tau.norm())


def test_scaled_magnitude_takes_the_best_scale(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base, tuned = model_folder("bert_classifier"), finetune_folder("bert_classifier", scale=0.05)
    seen: list[Evaluation] = []
    options = Options(method="scaled_magnitude", density=0.1, evaluations=12, values="fp32")
    report = compress(
        base, tuned, tmp_path / "d", options, calibration=Calibration(texts(12)), on_evaluation=seen.append
    )
    best = max(seen, key=lambda evaluation: evaluation.score)
    assert seen[0].point == (1.0,)
    assert (report.score, report.evaluations) == (best.score, len(seen))
    assert best.score > seen[0].score
    assert DeltaFile.open(tmp_path / "d").manifest.compression.params["scale"] == best.point[0]
    assert all(0.1 <= evaluation.point[0] <= MAX_SCALE for evaluation in seen)
    written = pico.delta(base, tuned, tmp_path / "e", density=0.1, values="fp32", scale=best.point[0])
    specs = pico.Architecture.of(pico.Checkpoint.open(base)).specs
    scaled = DeltaFile.open(tmp_path / "d").load(specs, written.manifest.base.fingerprint)
    for name, rows in written.matrices.items():
        assert np.array_equal(scaled.matrices[name].values, rows.values)


@pytest.mark.parametrize(("calibration", "evaluations"), [(None, 10), (Calibration(texts(4)), 0)])
def test_scaled_magnitude_needs_evaluations(
    model_folder: ModelFolder,
    finetune_folder: ModelFolder,
    tmp_path: Path,
    calibration: Calibration | None,
    evaluations: int,
) -> None:
    base, tuned = model_folder("bert_classifier"), finetune_folder("bert_classifier")
    options = Options(method="scaled_magnitude", evaluations=evaluations)
    with pytest.raises(InvalidRecipe) as caught:
        compress(base, tuned, tmp_path / "d", options, calibration=calibration)
    assert caught.value.param == ("evaluations" if calibration else "calibration")
    assert not (tmp_path / "d").exists()
