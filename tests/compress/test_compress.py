"""What a delta file holds and what the report says about it, recomputed here from the two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico

import patchbay
from patchbay.architecture import Kind, TensorSpec
from patchbay.checkpoint import Checkpoint, raw_bytes
from patchbay.compress.compress import METHODS, TINY, VALUE_NAMES, Options, Report, compress, is_prunable
from patchbay.delta import Delta, DeltaFile
from patchbay.errors import FinetuneMismatch, InvalidRecipe

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
MATRIX, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def taus(base: Path, tuned: Path) -> Tensors:
    before, after = pico.weights(base), pico.weights(tuned)
    return {name: after[name].float() - before[name].float() for name in before}


def stored(delta: Delta, name: str) -> torch.Tensor:
    return delta.matrices[name].to_dense() if name in delta.matrices else delta.vectors[name]


def damaged(folder: Path, out: Path, name: str, value: float) -> Path:
    def damage(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[3] = value
        return tensors

    return pico.rewrite(folder, out, damage)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", VALUE_NAMES)
def test_report_and_manifest_are_true(llama: Path, llama_tuned: Path, tmp_path: Path, method: str, values: str) -> None:
    options = Options(method=method, density=0.2, values=values, seed=7)
    report = compress(llama, llama_tuned, tmp_path / "d", options)
    delta = pico.delta(llama, llama_tuned, tmp_path / "again", method=method, density=0.2, values=values, seed=7)
    tau = taus(llama, llama_tuned)
    true = torch.cat([tau[name].flatten() for name in tau]).double()
    kept = torch.cat([stored(delta, name).flatten() for name in tau]).double()
    error = float((true - kept).norm() / true.norm())
    sigma = max(0.0, 1 - float(kept.abs().sum() / true.abs().sum()))
    statistics, size = delta.manifest.statistics, (tmp_path / "d").stat().st_size
    original = (llama_tuned / pico.WEIGHTS).stat().st_size
    assert report.relative_error == statistics.relative_error == pytest.approx(error, rel=1e-6)
    assert statistics.sigma == pytest.approx(sigma, rel=1e-6, abs=1e-9)
    assert (report.num_bytes, report.original_bytes) == (size, original)
    assert report.ratio == original / size
    assert report.bits_per_parameter == pytest.approx(8 * size / len(true))
    assert report.density == delta.manifest.compression.density == 0.2
    assert report.path == str(tmp_path / "d")
    assert report.seconds >= 0
    assert report.to_dict()["ratio"] == report.ratio
    assert delta.manifest.compression.seed == (7 if method == "random" else None)
    assert delta.manifest.compression.method == method
    assert delta.manifest.compression.params == {"values": values}
    assert (0 < error < 1) if method == "magnitude" else error > 1


def test_manifest_says_where_it_comes_from(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    compress(llama, llama_tuned, tmp_path / "d", Options(scale=1.5))
    manifest = DeltaFile.open(tmp_path / "d").manifest
    assert (manifest.base.name, manifest.provenance.finetuned) == (llama.name, llama_tuned.name)
    assert manifest.base.fingerprint == Checkpoint.open(llama).fingerprint
    assert manifest.provenance.original_bytes == (llama_tuned / pico.WEIGHTS).stat().st_size
    assert manifest.provenance.tool == f"patchbay {patchbay.__version__}"
    assert manifest.compression.params == {"values": "int8", "scale": 1.5}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_density_counts_the_matrices(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, method: str, density: float
) -> None:
    base, tuned = model_folder("gpt2"), finetune_folder("gpt2")
    delta = pico.delta(base, tuned, tmp_path / "d", method=method, density=density)
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


def test_same_options_same_bytes(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    def file(name: str, seed: int) -> bytes:
        return pico.delta_file(llama, llama_tuned, tmp_path / name, method="random", seed=seed).read_bytes()

    assert file("a", 1) == file("b", 1) != file("c", 2)


@pytest.mark.parametrize("name", pico.MAKERS)
def test_norms_biases_and_tiny_matrices_are_kept_whole(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    base, tuned = model_folder(name), finetune_folder(name)
    delta, tau = pico.delta(base, tuned, tmp_path / "d", density=0.01), taus(base, tuned)
    floats = {n for n, t in pico.weights(base).items() if t.is_floating_point()}
    assert set(delta.matrices) | set(delta.vectors) == {n for n in floats if bool(tau[n].any())}
    assert not set(delta.matrices) & set(delta.vectors)
    for tensor, vector in delta.vectors.items():
        torch.testing.assert_close(vector, tau[tensor], rtol=2**-8, atol=0)
    assert all(tau[tensor].dim() >= 2 and tau[tensor].numel() >= TINY for tensor in delta.matrices)


@pytest.mark.parametrize(
    ("kind", "shape", "prunable"),
    [
        (Kind.LINEAR, (64, 64), True),
        (Kind.CONV1D, (64, 64), True),
        (Kind.EMBEDDING, (64, 64), True),
        (Kind.CONV, (64, 4, 4, 4), True),
        (Kind.LINEAR, (64, 63), False),
        (Kind.NORM, (5000,), False),
        (Kind.BIAS, (5000,), False),
        (Kind.OTHER, (1, 50, 100), False),
    ],
)
def test_is_prunable(kind: Kind, shape: tuple[int, ...], prunable: bool) -> None:
    axis = {Kind.LINEAR: 0, Kind.CONV1D: 1, Kind.EMBEDDING: 0, Kind.CONV: 0}.get(kind)
    assert is_prunable(TensorSpec("a", "a", shape, "F32", kind, axis, (), False)) is prunable


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [MATRIX, NORM])
@pytest.mark.parametrize("method", METHODS)
def test_damaged_fine_tune_is_refused(
    llama: Path, llama_tuned: Path, tmp_path: Path, method: str, name: str, value: float
) -> None:
    tuned, out = damaged(llama_tuned, tmp_path / "tuned", name, value), tmp_path / "out" / "d"
    with pytest.raises(FinetuneMismatch) as caught:
        compress(llama, tuned, out, Options(method=method))
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


def test_exceptions_are_where_rounding_does_not_reach(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    """Exactly the entries whose bits would be wrong, with the right ones."""
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", density=0.3, values="bf16", exact=True)
    before, after = pico.weights(llama), pico.weights(llama_tuned)
    for name in before:
        wrong = (before[name] + stored(delta, name)) != after[name]
        exceptions = delta.exceptions[name]
        assert exceptions.positions.tolist() == torch.nonzero(wrong.flatten()).flatten().tolist()
        assert raw_bytes(exceptions.bits) == raw_bytes(after[name].flatten()[exceptions.positions.long()])
    assert pico.delta(llama, llama_tuned, tmp_path / "e", density=0.3, values="bf16").exceptions == {}


def test_unchanged_model_gives_an_empty_delta(llama: Path, tmp_path: Path) -> None:
    report = compress(llama, pico.rewrite(llama, tmp_path / "m", lambda t: t), tmp_path / "d", Options())
    manifest = DeltaFile.open(tmp_path / "d").manifest
    assert manifest.tensors == {}
    assert (manifest.statistics.relative_error, manifest.statistics.sigma, report.relative_error) == (0, 0, 0)


def test_only_a_norm_changed(llama: Path, tmp_path: Path) -> None:
    tuned = pico.rewrite(llama, tmp_path / "m", lambda tensors: {**tensors, NORM: tensors[NORM] + 1})
    delta = pico.delta(llama, tuned, tmp_path / "d", method="random")
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


def test_progress_goes_through_both_stages(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    compress(llama, llama_tuned, tmp_path / "d", Options(), lambda *step: steps.append(step))
    names = list(pico.weights(llama))
    assert [note for _, _, note in steps] == [f"compare {name}" for name in names] + names
    assert [(done, total) for done, total, _ in steps] == [(i, len(names)) for i in range(len(names))] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "lottery"),
        ("values", "fp8"),
        ("density", -0.1),
        ("density", 1.1),
        ("density", math.nan),
        ("scale", math.nan),
        ("scale", math.inf),
        ("seed", -1),
    ],
)
def test_bad_options_are_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Options(**{field: value})
    assert caught.value.param == field
    assert str(value) in caught.value.message


def test_unknown_choices_list_the_known() -> None:
    with pytest.raises(InvalidRecipe, match=", ".join(METHODS)):
        Options(method="lottery")
    with pytest.raises(InvalidRecipe, match=", ".join(VALUE_NAMES)):
        Options(values="fp8")


def test_report_has_a_field_for_every_number() -> None:
    report = Report("d", 10, 100, 10.0, 0.5, 0.05, 0.1, 1.0)
    assert list(report.to_dict().values()) == ["d", 10, 100, 10.0, 0.5, 0.05, 0.1, 1.0]
