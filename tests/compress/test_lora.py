"""An adapter of full rank is the merged model, to PEFT and to us; of a lower one it misses what its report says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import pico
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from patchbay.compress.lora import LoraReport, write_lora
from patchbay.compress.merge_files import write_merge
from patchbay.compress.merged_model import MergedModel, open_merge
from patchbay.errors import InputError, InvalidRecipe
from patchbay.merge import parse
from patchbay.task_vector import TaskVector

ModelFolder = Callable[..., Path]
AUTO: dict[str, Any] = {
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "bert_classifier": AutoModelForSequenceClassification,
    "bert_encoder": AutoModel,
    "clip_vision": AutoModel,
    "t5": AutoModelForSeq2SeqLM,
    "vit": AutoModelForImageClassification,
}
LOST = {"vit": 2, "clip_vision": 1}  # parameters that stand beside modules


@pytest.fixture(scope="module")
def merged(model_folder: ModelFolder, finetune_folder: ModelFolder) -> Callable[..., MergedModel]:
    def make(name: str, **options: object) -> MergedModel:
        paths = {"a": finetune_folder(name, seed=1, **options), "b": finetune_folder(name, seed=2, **options)}
        return open_merge(model_folder(name, **options), parse("0.5*a + 0.5*b"), paths)

    return make


def loaded(auto: Any, base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights that PEFT makes of the base."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of ties, and uses what transformers deprecates
        model = peft.PeftModel.from_pretrained(auto.from_pretrained(base), adapter)
        return dict(model.merge_and_unload().state_dict())


@pytest.mark.parametrize("name", AUTO)
def test_peft_makes_the_merged_model_of_it(
    merged: Callable[..., MergedModel], model_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    base, model = model_folder(name), merged(name)
    report = write_lora(model, tmp_path / "adapter", 128)
    write_merge(model, tmp_path / "merged")
    found = loaded(AUTO[name], base, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = AUTO[name].from_pretrained(tmp_path / "merged").state_dict()
    parameters = {model.base.specs[lost].parameter for lost in report.lost}
    assert len(parameters) == LOST.get(name, 0)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if key not in parameters:
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=2e-6, msg=key)
    if not parameters:
        assert report.errors["overall"] < 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_classifier"])
def test_it_is_read_back_as_a_fine_tune(
    merged: Callable[..., MergedModel], model_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    model = merged(name)
    write_lora(model, tmp_path / "adapter", 64)
    vector, expected = TaskVector.from_models(model_folder(name), tmp_path / "adapter"), dict(model.changed())
    for key, tensor in expected.items():
        torch.testing.assert_close(vector.apply(key, model.base.stored(key)), tensor, rtol=0, atol=2e-6, msg=key)


def test_errors_are_those_of_the_truncated_decomposition(merged: Callable[..., MergedModel], tmp_path: Path) -> None:
    model = merged("llama")
    report = write_lora(model, tmp_path / "adapter", 4)
    error = total = 0.0
    for name, tensor in model.changed():
        if model.base.specs[name].kind == "linear":
            values = torch.linalg.svdvals((tensor - model.base.stored(name)).double())
            error, total = error + float(values[4:].square().sum()), total + float(values.square().sum())
    assert report.errors["linear"] == pytest.approx((error / total) ** 0.5, rel=1e-3)
    assert report.errors["embedding"] == report.errors["norm"] == 0
    assert 0 < report.errors["overall"] < report.errors["linear"] < 1
    shapes = {
        tuple(tensor.shape)
        for name, tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").items()
        if "lora_A" in name
    }
    assert {shape[0] for shape in shapes} == {4}


def test_what_is_lost_is_said(merged: Callable[..., MergedModel], tmp_path: Path) -> None:
    model = merged("vit")
    report = write_lora(model, tmp_path / "adapter", 64)
    squares = {n: float((t - model.base.stored(n)).double().square().sum()) for n, t in model.changed()}
    assert len(report.lost) == 2
    for name, part in report.lost.items():
        assert part == pytest.approx(squares[name] / sum(squares.values()), rel=1e-4)


def test_config(merged: Callable[..., MergedModel], tmp_path: Path) -> None:
    configs = {}
    for name in ("llama", "gpt2", "bert_classifier"):
        write_lora(merged(name), tmp_path / name, 8)
        configs[name] = json.loads((tmp_path / name / "adapter_config.json").read_text())
    assert [configs[name]["fan_in_fan_out"] for name in configs] == [False, True, False]
    assert configs["llama"]["task_type"] == "CAUSAL_LM" and configs["llama"]["bias"] == "none"
    assert {"model.norm", "lm_head", "model.embed_tokens"} < set(configs["llama"]["modules_to_save"])
    assert configs["bert_classifier"]["auto_mapping"]["base_model_class"] == "BertForSequenceClassification"
    assert "classifier" in configs["bert_classifier"]["modules_to_save"]
    assert "base_model_relation: adapter" in (tmp_path / "llama/README.md").read_text()


def test_another_head_travels_whole(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    model = open_merge(base, parse("a"), {"a": tuned})
    report = write_lora(model, tmp_path / "adapter", 64)
    assert report.errors["overall"] < 1e-4
    vector = TaskVector.from_models(base, tmp_path / "adapter")
    assert torch.equal(vector.added["classifier.weight"], pico.weights(tuned)["classifier.weight"])
    for name in vector:
        expected = pico.weights(tuned)[f"bert.{name}"]
        torch.testing.assert_close(vector.apply(name, model.base.stored(name)), expected, rtol=0, atol=1e-5)


def test_in_the_dtype_of_the_base(merged: Callable[..., MergedModel], tmp_path: Path) -> None:
    report: LoraReport = write_lora(merged("llama", dtype=torch.bfloat16), tmp_path / "adapter", 64)
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 1e-4 < report.errors["linear"] < 0.01


def test_what_is_refused(merged: Callable[..., MergedModel], model_folder: ModelFolder, tmp_path: Path) -> None:
    model, out = merged("llama"), tmp_path / "out"
    for rank in (0, 5000):
        with pytest.raises(InvalidRecipe, match="rank"):
            write_lora(model, out, rank)
    base = model_folder("llama")
    larger = open_merge(base, parse("a"), {"a": pico.grow(base, tmp_path, pico.VOCAB + 3)})
    with pytest.raises(InvalidRecipe, match="add tokens"):
        write_lora(larger, out, 8)
    norms = pico.rewrite(base, tmp_path / "n", lambda ts: {n: t + ("norm" in n) for n, t in ts.items()})
    with pytest.raises(InvalidRecipe, match="no linear layer"):
        write_lora(open_merge(base, parse("a"), {"a": norms}), out, 8)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        write_lora(model, out, 8)
