"""The base with the patch written into it is the exported model, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests import pico

from patchbay.checkpoint import same_bits
from patchbay.compress.merge_files import write_merge
from patchbay.compress.merged_model import open_merge
from patchbay.compress.overwrite import FILE, write_overwrite
from patchbay.errors import InvalidRecipe
from patchbay.merge import parse

ModelFolder = Callable[..., Path]
DTYPES = [torch.float32, torch.bfloat16]


def applied(base: Path, patch: Path) -> dict[str, torch.Tensor]:
    weights, changes = pico.weights(base), load_file(patch)
    for key in changes:
        name, _, part = key.rpartition(".")
        if part == "indices":
            weights[name].view(-1)[changes[key].long()] = changes[f"{name}.values"]
    return weights


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_makes_the_exported_model(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    base, tuned = model_folder(name, dtype=dtype), finetune_folder(name, dtype=dtype)
    delta = pico.delta_file(base, tuned, tmp_path / "delta", density=0.1)
    model = open_merge(base, parse("a"), {"a": delta})
    write_merge(model, tmp_path / "hf")
    report = write_overwrite(model, tmp_path / "patch")
    before, found, expected = (
        pico.weights(base),
        applied(base, tmp_path / "patch" / FILE),
        pico.weights(tmp_path / "hf"),
    )
    assert found.keys() == expected.keys()
    assert all(same_bits(found[key], tensor) for key, tensor in expected.items())
    assert report.changed == sum(int((before[key] != expected[key]).sum()) for key in before) > 0
    assert report.changed < 0.5 * report.entries  # tiny matrices are stored whole
    assert sorted(path.name for path in (tmp_path / "patch").iterdir()) == ["README.md", FILE]


def test_layout(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama", dtype=torch.bfloat16)
    model = open_merge(base, parse("0.5*a"), {"a": finetune_folder("llama", dtype=torch.bfloat16)})
    report = write_overwrite(model, tmp_path / "patch")
    with safe_open(tmp_path / "patch" / FILE, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata["base_fingerprint"] == model.base.checkpoint.fingerprint and metadata["recipe"] == "0.5*a"
    assert float(metadata["sparsity"]) == pytest.approx(1 - report.changed / report.entries, abs=1e-6)
    for name in {key.rpartition(".")[0] for key in tensors}:
        indices, values = tensors[f"{name}.indices"], tensors[f"{name}.values"]
        assert indices.dtype == torch.int32 and values.dtype == torch.bfloat16
        assert bool((indices.diff() > 0).all()) and len(indices) == len(values)


def test_stored_copies_of_tied_tensors(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    def copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    base = pico.rewrite(model_folder("llama"), tmp_path / "base", copy)
    tuned = pico.rewrite(finetune_folder("llama"), tmp_path / "tuned", copy)
    model = open_merge(base, parse("0.5*a"), {"a": tuned})
    write_overwrite(model, tmp_path / "patch")
    expected = dict(model.tensors())
    for name, tensor in applied(base, tmp_path / "patch" / FILE).items():
        assert same_bits(tensor, expected[name]), name


def test_nothing_changes(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    model = open_merge(model_folder("llama"), parse("0*a"), {"a": finetune_folder("llama")})
    assert write_overwrite(model, tmp_path / "patch").changed == 0
    assert load_file(tmp_path / "patch" / FILE) == {}


def test_what_is_refused(model_folder: ModelFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = open_merge(model_folder("bert_encoder"), parse("a"), {"a": model_folder("bert_classifier")})
    with pytest.raises(InvalidRecipe, match="classification head"):
        write_overwrite(model, out)
    base = model_folder("llama")
    model = open_merge(base, parse("a"), {"a": pico.grow(base, tmp_path, pico.VOCAB + 3)})
    with pytest.raises(InvalidRecipe, match="added tokens"):
        write_overwrite(model, out)
    assert not out.exists()
