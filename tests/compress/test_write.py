"""What is written beside the kept entries: exceptions, statistics, heads, rows, and the fine-tune's own bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import pico
from tests.compress.problems import problem_of
from transformers import AutoTokenizer

from patchbay.architecture import Architecture, Kind, TensorSpec
from patchbay.checkpoint import Checkpoint, raw_bytes
from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Options, compress
from patchbay.compress.reconstruct import reconstruct
from patchbay.compress.sampled_nps import Choice, SampledNps
from patchbay.compress.statistics import neuron_statistics
from patchbay.compress.write import TINY, Writer, as_stored, is_prunable, whole_part
from patchbay.delta import Delta, DeltaFile, read_delta
from patchbay.delta.neurons import COSINE_STEPS, ENERGY_STEPS
from patchbay.task_vector import TaskVector

ModelFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
METHODS: list[dict[str, Any]] = [
    {"method": "nps"},
    {"method": "nps", "support": "topk", "scope": "all"},
    {"method": "magnitude"},
    {"method": "random"},
    {"method": "bitdelta"},
    {"method": "low_rank"},
]
MATRIX = "model.layers.0.mlp.up_proj.weight"


def loaded(base: Path, file: Path) -> Delta:
    checkpoint = Checkpoint.open(base)
    return read_delta(file, Architecture.of(checkpoint).specs, checkpoint.fingerprint)


def check_same_bits(folder: Path, expected: Path) -> None:
    left, right = Checkpoint.open(folder), Checkpoint.open(expected)
    assert list(left.tensors) == list(right.tensors)
    for name in left.tensors:
        assert raw_bytes(left.read(name)) == raw_bytes(right.read(name)), name


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, o) for n in pico.MAKERS for o in METHODS if o["method"] in ("nps", "bitdelta") or n in ("gpt2", "resnet")],
)
def test_exact_is_bit_for_bit_with_every_method(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    base, tuned = model_folder(name), finetune_folder(name)
    whole = {**pico.at_density(options["method"], 1.0), "values": "fp32", "exact": True}
    file = pico.delta_file(base, tuned, tmp_path / "d", **options, **whole)
    reconstruct(file, base, tmp_path / "rebuilt")
    check_same_bits(tmp_path / "rebuilt", tuned)


def test_exceptions_are_where_rounding_does_not_reach(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    """Exactly the entries whose bits would be wrong, with the right ones."""
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", density=0.3, values="bf16", exact=True)
    before, after = pico.weights(llama), pico.weights(llama_tuned)
    for name in before:
        wrong = torch.nonzero(((before[name] + delta.difference(name)) != after[name]).flatten()).flatten()
        if not len(wrong):
            assert name not in delta.exceptions
            continue
        exceptions = delta.exceptions[name]
        assert exceptions.positions.tolist() == wrong.tolist()
        assert raw_bytes(exceptions.bits) == raw_bytes(after[name].flatten()[wrong])
    assert delta.exceptions
    assert pico.delta(llama, llama_tuned, tmp_path / "e", density=0.3, values="bf16").exceptions == {}


@pytest.mark.parametrize("name", pico.MAKERS)
def test_statistics_of_neurons_are_the_full_vectors(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    """Whatever is kept; neuron by neuron, up to half a step of their codes."""
    base, tuned = model_folder(name), finetune_folder(name)
    delta = pico.delta(base, tuned, tmp_path / "d", density=0.01)
    specs, before, after = Architecture.of(Checkpoint.open(base)).specs, pico.weights(base), pico.weights(tuned)
    assert set(delta.neurons) == {n for n, spec in specs.items() if spec.neuron_axis is not None}
    for tensor, found in delta.neurons.items():
        w = before[tensor].double().movedim(specs[tensor].neuron_axis or 0, 0).flatten(1)
        tau = after[tensor].double().movedim(specs[tensor].neuron_axis or 0, 0).flatten(1) - w
        energy = tau.square().sum(1)
        cosine = (tau * w).sum(1) / (energy.sqrt() * w.norm(dim=1)).clamp(min=1e-30)
        nonzero = energy > 0
        steps = ENERGY_STEPS * torch.log2(found.energy.double()[nonzero] / energy[nonzero])
        assert bool((steps.abs() <= 0.6).all()), tensor
        assert bool((found.energy[~nonzero] == 0).all())
        assert bool(((found.cosine - cosine).abs() <= 0.51 / COSINE_STEPS).all()), tensor


def test_statistics_can_be_left_out(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    whole = pico.delta(llama, llama_tuned, tmp_path / "a")
    without = pico.delta(llama, llama_tuned, tmp_path / "b", merge_statistics=False)
    assert (bool(whole.neurons), without.neurons) == (True, {})
    assert DeltaFile.open(tmp_path / "b").itemised()["statistics"] == 0
    assert (tmp_path / "b").stat().st_size < (tmp_path / "a").stat().st_size
    assert all(torch.equal(rows.to_dense(), without.difference(name)) for name, rows in whole.matrices.items())


def test_statistics_of_silent_neurons() -> None:
    """No energy, no weights, or both: a cosine of 0, never NaN; too large a weight is no error either."""
    tau, base = torch.tensor([[0.0, 0], [3, 4], [0, 0], [1, 0]]), torch.tensor([[1.0, 2], [0, 0], [0, 0], [2e38, 0]])
    found = neuron_statistics(tau, base, 0)
    assert found.energy.tolist() == [0, 25, 0, 1]
    assert found.cosine[:3].tolist() == [0, 0, 0]
    assert bool(torch.isfinite(found.cosine).all())


@pytest.mark.parametrize("name", pico.MAKERS)
def test_norms_biases_and_tiny_matrices_are_kept_whole(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    base, tuned = model_folder(name), finetune_folder(name)
    before, after = pico.weights(base), pico.weights(tuned)
    for values, rounding in (("fp32", 0.0), ("bf16", 2**-8), ("int8", 2**-6)):
        delta = pico.delta(base, tuned, tmp_path / values, density=0.01, values=values)
        tau = {n: after[n] - before[n] for n, t in before.items() if t.is_floating_point()}
        assert set(delta.matrices) | set(delta.vectors) == {n for n, difference in tau.items() if difference.any()}
        assert not set(delta.matrices) & set(delta.vectors)
        assert all(tau[n].dim() >= 2 and tau[n].numel() >= TINY for n in delta.matrices)
        for tensor, vector in delta.vectors.items():
            assert float((vector - tau[tensor]).abs().max()) <= rounding * float(tau[tensor].abs().max())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "int4"),
        ({"values": "sign", "method": "magnitude"}, "int4"),
        ({"values": "fp32"}, "fp32"),
        ({"values": "bf16"}, "bf16"),
        ({"values": "int8"}, "int8"),
        ({"values": "int8", "exact": True}, "fp32"),
    ],
)
def test_encoding_of_norms(options: dict[str, Any], expected: str) -> None:
    assert whole_part(torch.ones(3), Options(**options)).values == expected


def test_as_stored_is_what_is_read(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    norm, options = "model.norm.weight", {"method": "bitdelta", "values": "auto"}
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", **options)
    tau = pico.weights(llama_tuned)[norm] - pico.weights(llama)[norm]
    found = as_stored(norm, whole_part(tau, Options(**options)))  # type: ignore[arg-type]
    assert torch.equal(found, delta.vectors[norm])
    assert not torch.equal(found, tau)


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


@pytest.mark.parametrize("name", ["gpt2", "bert_classifier"])
def test_scales_of_columns_are_written(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    """One a column of a linear layer, one a row of GPT-2's transposed ones; read back up to their rounding."""
    base, tuned, options = model_folder(name), finetune_folder(name, scale=0.01), Options(density=0.1, groups=1)
    vector = TaskVector.from_models(base, tuned)
    matrices = {n: vector[n] for n in vector if is_prunable(vector.specs[n])}
    linear = {n: vector.specs[n].neuron_axis or 0 for n in matrices if vector.specs[n].kind is not Kind.EMBEDDING}
    columns = {n: (2 ** (torch.arange(matrices[n].shape[1 - a]) % 5 / 4)).unsqueeze(a) for n, a in linear.items()}
    method = SampledNps(problem_of(matrices), options, choice=Choice(1, 1.0, (1.0,), columns=True))
    vars(method._mixture)["_columns"] = columns  # which it would weigh on calibration inputs
    Writer(vector, Checkpoint.open(tuned), options).write(method, 0.1, tmp_path / "d")
    found, pruner = loaded(base, tmp_path / "d"), method.pruner(0.1)
    used = {entry.values for entry in found.manifest.tensors.values() if entry.kind == "sparse"}
    assert ("sign_row" if name == "gpt2" else "sign_column_log") in used
    for matrix in sorted(matrices):
        part = pruner(matrix, matrices[matrix])
        torch.testing.assert_close(found.difference(matrix), part.rows.to_dense(), rtol=2**-7, atol=0)  # type: ignore[union-attr]


def with_new_words(base: Path, out: Path) -> Path:
    """A fine-tune with three tokens more than the base has rows, the words new0, new1 and new2."""
    tuned = pico.grow(base, out, pico.VOCAB + 3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"spare{number}" for number in range(pico.VOCAB - len(tokenizer))] + ["new0", "new1", "new2"])
    assert len(tokenizer) == pico.VOCAB + 3
    tokenizer.save_pretrained(tuned)
    return tuned


@pytest.mark.parametrize("name", ["llama", "bert_classifier"])
def test_rows_of_a_larger_vocabulary_travel(model_folder: ModelFolder, tmp_path: Path, name: str) -> None:
    """Calibration inputs may have the new words in them: every candidate has their rows."""
    base = model_folder(name)
    tuned = with_new_words(base, tmp_path)
    inputs = Calibration(("the new0 cat", "new1 new2 runs", "a dog"))
    report = compress(base, tuned, tmp_path / "d", Options(density=0.1, evaluations=3), calibration=inputs)
    assert report.evaluations == 3
    delta, after = loaded(base, tmp_path / "d"), pico.weights(tuned)
    assert delta.appended
    for tensor, rows in delta.appended.items():
        assert raw_bytes(rows) == raw_bytes(after[tensor][pico.VOCAB :].contiguous())


def test_rows_are_appended_to_tensors_that_did_not_change(llama: Path, tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    longer = torch.cat([pico.weights(llama)[name], torch.ones(2, 64)])
    tuned = pico.rewrite(llama, tmp_path / "tuned", lambda tensors: tensors | {name: longer})
    pico.reconfigure(tuned, tmp_path / "resized", vocab_size=pico.VOCAB + 2)
    delta = pico.delta(llama, tmp_path / "resized", tmp_path / "d", method="nps")
    assert len(delta.matrices[name].positions) == 0
    assert delta.appended[name].tolist() == torch.ones(2, 64).tolist()


@pytest.mark.parametrize("options", [{"exact": True, "values": "fp32"}, {"exact": False, "values": "fp32"}])
def test_adapters_are_fine_tunes(llama: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """LoRA with alpha / r = 2 on one matrix, whose product is the whole difference."""
    generator, adapter = torch.Generator().manual_seed(0), tmp_path / "adapter"
    a, b = torch.randn(4, 64, generator=generator) / 8, torch.randn(128, 4, generator=generator) / 8
    adapter.mkdir()
    place = f"base_model.model.{MATRIX.removesuffix('.weight')}"
    save_file({f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    report = compress(llama, adapter, tmp_path / "d", Options(method="low_rank", density=1.0, **options))
    delta = loaded(llama, tmp_path / "d")
    assert (set(delta.factors), delta.matrices, delta.vectors) == ({MATRIX}, {}, {})
    assert float((delta.difference(MATRIX) - 2 * b @ a).norm()) < 0.01 * float((b @ a).norm())
    assert bool(delta.exceptions) is options["exact"]
    assert report.density == 1.0
    assert not math.isnan(report.relative_error)
