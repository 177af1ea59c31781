"""The method that loses no bit: rebuilt, served and merged, of every kind of model, and in the one size that it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import pico
from tests.compress.test_write import check_same_bits

from patchbay.backbone import Backbone
from patchbay.checkpoint import Checkpoint
from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Options, Report, compress
from patchbay.compress.fuse_files import fuse_files
from patchbay.compress.reconstruct import reconstruct
from patchbay.compress.transfer import transfer
from patchbay.delta import Delta, DeltaFile, read_delta
from patchbay.delta.manifest import DTYPES
from patchbay.errors import BackboneError, InvalidRecipe, NonFiniteValue
from patchbay.execute.patch import Patcher

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
INPUTS = Calibration(("the cat runs", "a big dog eats one fox", "bad"))


def planted(folder: Path, out: Path, start: int) -> Path:
    """-0.0 and NaNs with payloads from entry `start` on."""

    def plant(tensors: Tensors) -> Tensors:
        pico.plant(tensors.values(), start)
        return tensors

    return pico.rewrite(folder, out, plant)


def lossless(base: Path, tuned: Path, out: Path, **options: Any) -> Report:
    return compress(base, tuned, out, Options("lossless", **options))


def rebuilt(base: Path, tuned: Path, tmp_path: Path) -> Path:
    lossless(base, tuned, tmp_path / "delta")
    reconstruct(tmp_path / "delta", base, tmp_path / "rebuilt")
    return tmp_path / "rebuilt"


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_model_comes_back_bit_for_bit(
    model_folder: ModelFolder, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    base = planted(model_folder(name, dtype=dtype), tmp_path / "base", 2)
    tuned = pico.perturb(base, tmp_path / "noisy", seed=3)
    tuned = planted(planted(tuned, tmp_path / "odd", 4), tmp_path / "tuned", 8)  # over the base's, and beside them
    check_same_bits(rebuilt(base, tuned, tmp_path), tuned)
    kinds = {entry.kind for entry in DeltaFile.open(tmp_path / "delta").manifest.tensors.values()}
    assert kinds == {"lossless"}


@pytest.mark.parametrize("change", [torch.float16, torch.bfloat16, torch.float64])
def test_a_fine_tune_of_another_dtype(model_folder: ModelFolder, tmp_path: Path, change: torch.dtype) -> None:
    base = planted(model_folder("llama"), tmp_path / "base", 3)
    tuned = pico.perturb(model_folder("llama"), tmp_path / "noisy")
    tuned = pico.rewrite(tuned, tmp_path / "tuned", lambda tensors: {n: t.to(change) for n, t in tensors.items()})
    check_same_bits(rebuilt(base, tuned, tmp_path), tuned)
    entries = DeltaFile.open(tmp_path / "delta").manifest.tensors.values()
    assert {DTYPES[entry.dtype] for entry in entries} == {change}


@pytest.mark.parametrize("tied", [True, False])
def test_a_larger_vocabulary(model_folder: ModelFolder, tmp_path: Path, tied: bool) -> None:
    base = model_folder("llama", tied=tied)
    tuned = pico.grow(base, tmp_path, pico.VOCAB + 3)
    check_same_bits(rebuilt(base, tuned, tmp_path), tuned)


def test_heads_integers_and_unchanged_tensors(model_folder: ModelFolder, tmp_path: Path) -> None:
    counter, kept = (
        "resnet.embedder.embedder.normalization.num_batches_tracked",
        "resnet.embedder.embedder.convolution.weight",
    )
    base = model_folder("resnet")
    noisy = pico.weights(pico.perturb(model_folder("resnet", labels=("a", "b")), tmp_path / "noisy"))

    def change(tensors: Tensors) -> Tensors:
        return {**tensors, counter: tensors[counter] + 7, kept: pico.weights(base)[kept]}

    tuned = pico.rewrite(tmp_path / "noisy", tmp_path / "tuned", change)
    check_same_bits(rebuilt(base, tuned, tmp_path), tuned)
    tensors = DeltaFile.open(tmp_path / "delta").manifest.tensors
    assert kept not in tensors and tensors[counter].kind == "copied"
    assert {name for name, entry in tensors.items() if entry.kind == "added"} == {n for n in noisy if "classifier" in n}


@pytest.fixture
def delta(llama: Path, llama_tuned: Path, tmp_path: Path) -> Delta:
    return pico.delta(llama, llama_tuned, tmp_path / "delta", method="lossless")


def load(folder: Path, **options: str) -> Backbone:
    return Backbone.load(folder, device="cpu", **options)


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_served_alone_it_is_the_fine_tune(
    model_folder: ModelFolder, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    base = model_folder(name, dtype=dtype)
    tuned = pico.perturb(base, tmp_path / "tuned")
    delta, backbone = pico.delta(base, tuned, tmp_path / "delta", method="lossless"), load(base)
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert backbone.compute_digest() == load(tuned).resident_digest
    assert backbone.compute_digest() == backbone.resident_digest


def test_half_way_is_half_of_the_difference(llama: Path, llama_tuned: Path, delta: Delta) -> None:
    backbone, after = load(llama), pico.weights(llama_tuned)
    with Patcher(backbone).patched(pico.plan([delta], [0.5]), [delta]):
        for name, before in pico.weights(llama).items():
            assert torch.equal(backbone.tensor(name), before + 0.5 * (after[name] - before))


def test_merged_with_a_pruned_delta(llama: Path, llama_tuned: Path, delta: Delta, tmp_path: Path) -> None:
    other = pico.delta(llama, llama_tuned, tmp_path / "other", density=0.1)
    backbone, after, deltas = load(llama), pico.weights(llama_tuned), [delta, other]
    with Patcher(backbone).patched(pico.plan(deltas, [0.5, -1.0]), deltas):
        for name, before in pico.weights(llama).items():
            pruned = other.matrices[name].to_dense() if name in other.matrices else other.vectors[name]
            expected = before + (0.5 * (after[name] - before) - pruned)
            torch.testing.assert_close(backbone.tensor(name), expected, rtol=1e-6, atol=1e-7)


def test_resident_in_another_dtype_it_is_read_against_the_stored_bits(llama: Path, tmp_path: Path) -> None:
    tuned = pico.perturb(llama, tmp_path / "tuned")
    lossless(llama, tuned, tmp_path / "delta")
    backbone = load(llama, dtype="bf16")
    delta = read_delta(tmp_path / "delta", backbone.specs, backbone.fingerprint, read_base=backbone.stored)
    for name, after in pico.weights(tuned).items():
        assert torch.equal(delta.vectors[name], after - pico.weights(llama)[name])


def test_a_base_that_changed_on_disk_is_noticed(llama: Path, tmp_path: Path) -> None:
    base = pico.rewrite(llama, tmp_path / "base", lambda tensors: tensors)
    backbone = load(base)
    pico.save_weights(base, {name: tensor + 1 for name, tensor in pico.weights(llama).items()})
    with pytest.raises(BackboneError, match="has changed since it was loaded"):
        backbone.stored("model.norm.weight")


def test_numbers_that_are_not_finite_are_rebuilt_and_never_served(llama: Path, tmp_path: Path) -> None:
    tuned = planted(pico.perturb(llama, tmp_path / "noisy"), tmp_path / "tuned", 5)
    check_same_bits(rebuilt(llama, tuned, tmp_path), tuned)
    backbone = load(llama)
    with pytest.raises(NonFiniteValue):
        read_delta(tmp_path / "delta", backbone.specs, backbone.fingerprint, read_base=backbone.stored)


def test_the_file_says_what_it_holds(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    report = lossless(llama, llama_tuned, tmp_path / "d")
    manifest = DeltaFile.open(tmp_path / "d").manifest
    assert (manifest.compression.method, manifest.compression.density) == ("lossless", 1.0)
    assert (manifest.statistics.relative_error, manifest.statistics.sigma) == (0.0, 0.0)
    assert (report.density, report.relative_error, report.evaluations) == (1.0, 0.0, 0)
    others = ("header", "manifest", "lossless", "statistics")
    assert sum(report.sizes[item] for item in others) == report.num_bytes == (tmp_path / "d").stat().st_size
    assert 0.5 < 1 / report.ratio < 0.95


@pytest.mark.parametrize("options", [{"exact": True}, {"groups": 3}])
def test_what_other_methods_ask_changes_no_stream(
    llama: Path, llama_tuned: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    tuned = planted(llama_tuned, tmp_path / "tuned", 3)  # where the difference alone does not give the bits
    lossless(llama, tuned, tmp_path / "plain")
    lossless(llama, tuned, tmp_path / "other", **options)
    left, right = (DeltaFile.open(tmp_path / name).manifest for name in ("plain", "other"))
    assert left.payload_sha256 == right.payload_sha256


def test_an_encoding_of_values_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="lossless keeps bits") as caught:
        Options("lossless", values="int8")
    assert caught.value.param == "values"


def test_statistics_are_those_of_every_method(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    delta = pico.delta(llama, llama_tuned, tmp_path / "a", method="lossless")
    other = pico.delta(llama, llama_tuned, tmp_path / "b", method="magnitude")
    assert delta.neurons.keys() == other.neurons.keys() != set()
    for name, neurons in delta.neurons.items():
        assert torch.equal(neurons.energy, other.neurons[name].energy)
        assert torch.equal(neurons.cosine, other.neurons[name].cosine)
    assert pico.delta(llama, llama_tuned, tmp_path / "c", method="lossless", merge_statistics=False).neurons == {}


def test_a_size_is_met_or_refused_with_the_number(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    least = lossless(llama, llama_tuned, tmp_path / "d").num_bytes
    with pytest.raises(
        InvalidRecipe, match=f"{least - 1} bytes are too few: the smallest file takes {least};"
    ) as caught:
        lossless(llama, llama_tuned, tmp_path / "e", target_size=least - 1)
    assert (caught.value.param, (tmp_path / "e").exists()) == ("target_size", False)
    for target in (least, least + 1, 2 * least, 10**9):
        report = lossless(llama, llama_tuned, tmp_path / "e", target_size=target)
        assert (report.num_bytes, report.density) == (least, 1.0)
    assert (tmp_path / "d").read_bytes() == (tmp_path / "e").read_bytes()


def test_fused_and_transferred(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    lossless(llama, llama_tuned, tmp_path / "d")
    fuse_files(llama, {"a": tmp_path / "d"}, tmp_path / "fused", lambdas=[0.5])
    checkpoint = Checkpoint.open(llama)
    fused = DeltaFile.open(tmp_path / "fused").load(load(llama).specs, checkpoint.fingerprint)
    for name, vector in fused.vectors.items():
        half = 0.5 * (pico.weights(llama_tuned)[name] - pico.weights(llama)[name])
        torch.testing.assert_close(vector, half, rtol=2**-8, atol=0)
    curve = transfer(llama, tmp_path / "d", (0.0, 1.0), calibration=INPUTS)
    assert curve.points[1].target == pytest.approx(0, abs=1e-6)
    assert curve.points[0].target < -1e-6


def test_an_adapter_is_its_merged_weights(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Rounded to the base's dtype, as they would be saved, and only where it has any."""
    base, adapter, place = (
        model_folder("llama", dtype=torch.bfloat16),
        tmp_path / "adapter",
        "model.layers.0.mlp.up_proj",
    )
    factors = {f"base_model.model.{place}.lora_A.weight": torch.randn(4, 64) / 8}
    factors[f"base_model.model.{place}.lora_B.weight"] = torch.randn(128, 4) / 8
    adapter.mkdir()
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    found = pico.weights(rebuilt(base, adapter, tmp_path))
    assert set(DeltaFile.open(tmp_path / "delta").manifest.tensors) == {f"{place}.weight"}
    right, left = factors.values()
    for name, before in pico.weights(base).items():
        moved = (before.float() + 2 * left @ right).bfloat16() if name == f"{place}.weight" else before
        torch.testing.assert_close(found[name], moved, rtol=2**-7, atol=1e-3)
