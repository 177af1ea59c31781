"""A merge on disk is a model folder like any other, which says how it was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from tests import pico
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchbay.backbone import Backbone
from patchbay.checkpoint import INDEX, Checkpoint, raw_bytes
from patchbay.compress import shards
from patchbay.compress.merge_files import write_merge
from patchbay.compress.merged_model import MergedModel, open_merge
from patchbay.compress.reconstruct import reconstruct
from patchbay.errors import BackboneError, InputError
from patchbay.merge import Recipe, parse

ModelFolder = Callable[..., Path]


@pytest.fixture
def paths(llama: Path, finetune_folder: ModelFolder, tmp_path: Path) -> dict[str, Path]:
    delta = pico.delta_file(llama, finetune_folder("llama", seed=1), tmp_path / "a.safetensors", density=0.2)
    return {"a": delta, "b": finetune_folder("llama", seed=2)}


@pytest.fixture
def model(llama: Path, paths: dict[str, Path]) -> MergedModel:
    return open_merge(llama, parse("linear(a, 2*b; scale=0.5)"), paths)


def test_it_loads_in_transformers(llama: Path, model: MergedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = write_merge(model, out)
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    expected = dict(model.tensors())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert report.tensors == len(expected) and report.architecture == "LlamaForCausalLM"
    assert report.bytes == sum(tensor.nbytes for tensor in expected.values())
    words = "the cat runs"
    assert AutoTokenizer.from_pretrained(out)(words) == AutoTokenizer.from_pretrained(llama)(words)
    assert json.loads((out / "config.json").read_text()) == json.loads((llama / "config.json").read_text())


def test_shards(model: MergedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_merge(model, tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    write_merge(model, tmp_path / "many")
    assert (tmp_path / "many" / INDEX).is_file() and len(list((tmp_path / "many").glob("model-*-of-*"))) > 2
    one, many = (Checkpoint.open(tmp_path / name) for name in ("one", "many"))
    assert one.fingerprint == many.fingerprint
    assert Backbone.load(tmp_path / "many", device="cpu").fingerprint == one.fingerprint


def test_card(model: MergedModel, tmp_path: Path) -> None:
    write_merge(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": [model.base.name],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "patchbay"],
    }
    for text in ("linear(a, 2*b; scale=0.5)", "arxiv.org/abs/2203.05482", model.base.checkpoint.fingerprint):
        assert text in body
    assert all(term.digest in body for term in model.terms)
    assert Recipe.model_validate_json(body.split("```json\n")[1].split("```")[0]) == model.recipe
    assert str(tmp_path) not in card


def test_weights_alone(model: MergedModel, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    write_merge(model, out)
    expected = dict(model.tensors())
    with safe_open(out, framework="pt") as file:
        assert set(file.keys()) == expected.keys()
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in expected.items())
        assert file.metadata()["recipe"] == model.written
        assert file.metadata()["base_fingerprint"] == model.base.checkpoint.fingerprint


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("method", ["magnitude", "lossless"])
def test_one_delta_is_what_reconstruct_writes(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str, method: str
) -> None:
    base = model_folder(name)
    delta = pico.delta_file(base, finetune_folder(name), tmp_path / "delta", method=method)
    reconstruct(delta, base, tmp_path / "expected")
    write_merge(open_merge(base, parse("a"), {"a": delta}), tmp_path / "found")
    found, expected = (Checkpoint.open(tmp_path / folder) for folder in ("found", "expected"))
    assert found.config == expected.config and list(found.tensors) == list(expected.tensors)
    assert all(raw_bytes(found.read(each)) == raw_bytes(expected.read(each)) for each in expected.tensors)


def test_a_head_of_one_output(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5, labels=("score",))
    delta = pico.delta_file(base, tuned, tmp_path / "delta")
    write_merge(open_merge(base, parse("a"), {"a": delta}), tmp_path / "out")
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(pico.weights(tmp_path / "out")[name], pico.weights(tuned)[name])


def test_progress_runs_to_the_end(model: MergedModel, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = write_merge(model, tmp_path / "out", lambda *update: seen.append(update))
    assert [done for done, _, _ in seen] == list(range(report.tensors)) and {total for _, total, _ in seen} == {
        len(seen)
    }


def test_nothing_is_left_of_a_failure(llama: Path, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    tuned = pico.rewrite(finetune_folder("llama"), tmp_path / "tuned", lambda tensors: tensors)
    model = open_merge(llama, parse("0.5*a"), {"a": tuned})
    (tuned / pico.WEIGHTS).touch()
    for out in (tmp_path / "made" / "out", tmp_path / "made" / "out.safetensors"):
        with pytest.raises(BackboneError, match="changed"):
            write_merge(model, out)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_what_exists_stays(model: MergedModel, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    with pytest.raises(InputError):
        write_merge(model, out)
    assert out.read_text() == "mine"
