"""What a delta file holds and what the report says about it, recomputed here from the two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.compress.problems import texts

import patchbay
from patchbay.checkpoint import Checkpoint, raw_bytes
from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Options, Report, compress
from patchbay.compress.options import METHODS, ONE_SIZE, VALUES
from patchbay.compress.write import TINY
from patchbay.delta import Delta, DeltaFile, read_delta
from patchbay.errors import FinetuneMismatch, InputError, InvalidRecipe

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
MATRIX, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
INPUTS = Calibration(texts(6))
PRUNING = ("nps", "magnitude", "scaled_magnitude", "random")
# Every method with its own encoding and, where there is a choice, the exact one, and one method with every encoding.
PAIRS = [(method, values) for method in METHODS for values in ("auto", "fp32")]
PAIRS.remove(("lossless", "fp32"))
PAIRS += [("magnitude", values) for values in VALUES if values not in ("auto", "fp32")]


def taus(base: Path, tuned: Path) -> Tensors:
    before, after = pico.weights(base), pico.weights(tuned)
    return {name: after[name].float() - before[name].float() for name in before}


def damaged(folder: Path, out: Path, name: str, value: float) -> Path:
    def damage(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[3] = value
        return tensors

    return pico.rewrite(folder, out, damage)


def options_of(method: str, **options: Any) -> tuple[Options, dict[str, Any]]:
    """Options, and the calibration inputs where a method has no result without."""
    given = {"calibration": INPUTS} if method == "scaled_magnitude" else {}
    if method in ONE_SIZE:
        options.pop("density", None)
    return Options(method=method, evaluations=3, **options), given


def delta_of(base: Path, file: Path) -> Delta:
    checkpoint = Checkpoint.open(base)
    specs = pico.Architecture.of(checkpoint).specs
    return read_delta(file, specs, checkpoint.fingerprint, read_base=checkpoint.read)


@pytest.mark.parametrize(("method", "values"), PAIRS)
def test_report_and_manifest_are_true(llama: Path, llama_tuned: Path, tmp_path: Path, method: str, values: str) -> None:
    options, given = options_of(method, density=0.2, values=values, seed=7)
    report = compress(llama, llama_tuned, tmp_path / "d", options, **given)
    delta = delta_of(llama, tmp_path / "d")
    tau = taus(llama, llama_tuned)
    true = torch.cat([tau[name].flatten() for name in tau]).double()
    kept = torch.cat([delta.difference(name).flatten() for name in tau]).double()
    error = float((true - kept).norm() / true.norm())
    sigma = max(0.0, 1 - float(kept.abs().sum() / true.abs().sum()))
    statistics, size = delta.manifest.statistics, (tmp_path / "d").stat().st_size
    original = (llama_tuned / pico.WEIGHTS).stat().st_size
    assert report.relative_error == statistics.relative_error == pytest.approx(error, rel=1e-5)
    assert statistics.sigma == pytest.approx(sigma, rel=1e-5, abs=1e-6)
    assert (report.num_bytes, report.original_bytes) == (size, original)
    assert report.ratio == original / size
    assert report.bits_per_parameter == pytest.approx(8 * size / len(true))
    assert report.density == delta.manifest.compression.density == (1.0 if method in ONE_SIZE else 0.2)
    assert report.path == str(tmp_path / "d")
    assert report.seconds >= 0
    assert (report.evaluations, report.score is None) == (3 if given else 0, not given)
    assert sum(report.sizes.values()) == size
    assert report.to_dict() | {"sizes": None} == {k: getattr(report, k) for k in report.to_dict()} | {"sizes": None}
    assert delta.manifest.compression.seed == (7 if method in ("random", "nps") else None)
    assert delta.manifest.compression.method == method
    assert delta.manifest.compression.params["values"] == values


def test_heads_are_counted_apart(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    report = compress(base, tuned, tmp_path / "d", Options())
    assert report.sizes["added"] > 0
    without = report.bits_per_parameter * (1 - report.sizes["added"] / report.num_bytes)
    assert report.bits_without_heads == pytest.approx(without)


def test_manifest_says_where_it_comes_from(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    compress(llama, llama_tuned, tmp_path / "d", Options(method="magnitude", scale=1.5))
    manifest = DeltaFile.open(tmp_path / "d").manifest
    assert (manifest.base.name, manifest.provenance.finetuned) == (llama.name, llama_tuned.name)
    assert manifest.base.fingerprint == Checkpoint.open(llama).fingerprint
    assert manifest.provenance.original_bytes == (llama_tuned / pico.WEIGHTS).stat().st_size
    assert manifest.provenance.parameters == sum(t.numel() for t in pico.weights(llama).values())
    assert manifest.provenance.tool == f"patchbay {patchbay.__version__}"
    assert manifest.compression.params == {"values": "auto", "scale": 1.5}
    assert manifest.compression.density == 0.05


@pytest.mark.parametrize("method", PRUNING)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_density_counts_the_matrices(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, method: str, density: float
) -> None:
    base, tuned = model_folder("gpt2"), finetune_folder("gpt2")
    options, given = options_of(method, density=density)
    compress(base, tuned, tmp_path / "d", options, **given)
    delta = delta_of(base, tmp_path / "d")
    prunable = sum(t.numel() for t in pico.weights(base).values() if t.dim() == 2 and t.numel() >= TINY)
    assert delta.manifest.num_kept == math.floor(density * prunable + 1e-6)
    assert sum(len(rows.values) for rows in delta.matrices.values()) == delta.manifest.num_kept
    assert set(delta.matrices) | set(delta.vectors) == set(pico.weights(base))


def test_largest_entries_of_all_matrices_are_kept(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    delta, tau = pico.delta(llama, llama_tuned, tmp_path / "d", density=0.1, values="fp32"), taus(llama, llama_tuned)
    magnitudes = torch.cat([tau[name].abs().flatten() for name in sorted(delta.matrices)])
    threshold = magnitudes.sort(descending=True).values[delta.manifest.num_kept - 1]
    for name, rows in delta.matrices.items():
        kept = torch.where(tau[name].abs() >= threshold, tau[name], 0.0)
        assert torch.equal(rows.to_dense(), kept)


def test_scale_multiplies_kept_values(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    plain = pico.delta(llama, llama_tuned, tmp_path / "a", density=0.1, values="fp32")
    scaled = pico.delta(llama, llama_tuned, tmp_path / "b", density=0.1, values="fp32", scale=1.5)
    for name, rows in plain.matrices.items():
        assert torch.equal(scaled.matrices[name].positions, rows.positions)
        assert torch.equal(scaled.matrices[name].values, rows.values * 1.5)
    assert all(torch.equal(scaled.vectors[name], vector) for name, vector in plain.vectors.items())


def test_sampled_values_are_divided_by_the_density(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", method="random", density=0.25, values="fp32")
    tau = taus(llama, llama_tuned)
    for name, rows in delta.matrices.items():
        torch.testing.assert_close(rows.values, 4 * tau[name].flatten()[rows.positions.long()], rtol=1e-3, atol=0)
    assert delta.manifest.statistics.sigma < 0.02


@pytest.mark.parametrize("method", ["random", "nps"])
def test_same_options_same_bytes(llama: Path, llama_tuned: Path, tmp_path: Path, method: str) -> None:
    def file(name: str, seed: int) -> bytes:
        return pico.delta_file(llama, llama_tuned, tmp_path / name, method=method, seed=seed).read_bytes()

    assert file("a", 1) == file("b", 1) != file("c", 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [MATRIX, NORM])
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"lossless"}))
def test_damaged_fine_tune_is_refused(
    llama: Path, llama_tuned: Path, tmp_path: Path, method: str, name: str, value: float
) -> None:
    tuned, out = damaged(llama_tuned, tmp_path / "tuned", name, value), tmp_path / "out" / "d"
    options, given = options_of(method)
    with pytest.raises(FinetuneMismatch) as caught:
        compress(llama, tuned, out, options, **given)
    assert caught.value.param == name
    assert name in caught.value.message
    assert not out.parent.exists() or not any(out.parent.iterdir())


@pytest.mark.parametrize("name", [MATRIX, NORM])
def test_damaged_fine_tune_is_stored_where_exact(llama: Path, llama_tuned: Path, tmp_path: Path, name: str) -> None:
    tuned = damaged(llama_tuned, tmp_path / "tuned", name, math.nan)
    report = compress(llama, tuned, tmp_path / "d", Options(exact=True))
    exceptions = DeltaFile.open(tmp_path / "d").manifest.tensors[name].exceptions
    assert exceptions is not None
    assert exceptions.count >= 1
    assert math.isfinite(report.relative_error)


@pytest.mark.parametrize("method", METHODS)
def test_unchanged_model_gives_an_empty_delta(llama: Path, tmp_path: Path, method: str) -> None:
    options, given = options_of(method)
    report = compress(llama, pico.rewrite(llama, tmp_path / "m", lambda t: t), tmp_path / "d", options, **given)
    manifest = DeltaFile.open(tmp_path / "d").manifest
    assert manifest.tensors == {}
    assert (manifest.statistics.relative_error, manifest.statistics.sigma, report.relative_error) == (0, 0, 0)


@pytest.mark.parametrize(
    "more", [*({"method": method} for method in METHODS), {"method": "nps", "support": "topk", "scope": "all"}]
)
@pytest.mark.parametrize("given", [{}, {"calibration": INPUTS}], ids=["plain", "searched"])
def test_only_a_norm_changed(llama: Path, tmp_path: Path, more: dict[str, Any], given: dict[str, Any]) -> None:
    tuned = pico.rewrite(llama, tmp_path / "m", lambda tensors: {**tensors, NORM: tensors[NORM] + 1})
    options, needed = options_of(**more)
    compress(llama, tuned, tmp_path / "d", options, **given or needed)
    delta = delta_of(llama, tmp_path / "d")
    assert (list(delta.matrices), list(delta.vectors)) == ([], [NORM])
    assert delta.manifest.statistics.relative_error < 2**-8


def test_head_labels_and_tokens_travel(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    delta, after = pico.delta(base, tuned, tmp_path / "d"), pico.weights(tuned)
    assert set(delta.added) == {"classifier.weight", "classifier.bias"}
    assert all(raw_bytes(tensor) == raw_bytes(after[name]) for name, tensor in delta.added.items())
    assert delta.labels == pico.LABELS
    assert delta.manifest.prefix == "bert."
    assert delta.manifest.config["architectures"] == ["BertForSequenceClassification"]


def test_integer_buffers_are_copied(model_folder: ModelFolder, tmp_path: Path) -> None:
    counter = "resnet.embedder.embedder.normalization.num_batches_tracked"
    base = model_folder("resnet")
    tuned = pico.rewrite(base, tmp_path / "m", lambda tensors: {**tensors, counter: tensors[counter] + 7})
    delta = pico.delta(base, tuned, tmp_path / "d")
    assert {name: (t.dtype, t.shape, t.item()) for name, t in delta.copied.items()} == {
        counter: (torch.int64, torch.Size([]), 7)
    }


def test_progress_goes_through_all_stages(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    options = Options(method="nps", support="topk", evaluations=4)
    compress(
        llama, llama_tuned, tmp_path / "d", options, calibration=INPUTS, on_progress=lambda *step: steps.append(step)
    )
    names, notes = list(pico.weights(llama)), [note for _, _, note in steps]
    assert notes[: len(names)] == [f"compare {name}" for name in names]
    assert [note.split(",")[0] for note in notes[len(names) : -len(names)]] == [
        f"search evaluation {number}" for number in (1, 2, 3, 4)
    ]
    assert notes[-len(names) :] == [f"write {name}" for name in sorted(names)]
    whole = [(number, len(names)) for number in range(len(names))]
    assert [(done, total) for done, total, _ in steps] == [*whole, (1, 4), (2, 4), (3, 4), (4, 4), *whole]


def test_calibration_may_be_a_file(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "inputs.txt").write_text("\n".join(str(text) for text in INPUTS.inputs))
    options = Options(density=0.1, evaluations=4)
    one = compress(llama, llama_tuned, tmp_path / "a", options, calibration=INPUTS)
    other = compress(llama, llama_tuned, tmp_path / "b", options, calibration=tmp_path / "inputs.txt")
    assert replace(one, path="", seconds=0) == replace(other, path="", seconds=0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(InputError, match="there is no calibration file"):
        compress(llama, llama_tuned, tmp_path / "c", options, calibration=tmp_path / "none.txt")
    assert not (tmp_path / "c").exists()


def test_scaled_magnitude_asks_for_inputs(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="give some") as caught:
        compress(llama, llama_tuned, tmp_path / "d", Options(method="scaled_magnitude"))
    assert caught.value.param == "calibration"


def test_report_is_json(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    report = compress(llama, llama_tuned, tmp_path / "d", Options())
    assert Report(**report.to_dict()) == report
