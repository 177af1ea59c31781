"""The size of what arrives at each input column, against hidden states that are computed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.compress.problems import texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchbay.backbone import Backbone
from patchbay.compress import importance
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.importance import SMALLEST, STEPS, column_scales

ModelFolder = Callable[..., Path]
TEXT = "the big cat sees two small dogs"  # alone, so that nothing is padded: what arrives at padding counts as well


def judge_of(base: Path, tuned: Path, out: Path, inputs: tuple[str, ...] = (TEXT,)) -> Judge:
    full = pico.delta(base, tuned, out / "full", density=1.0, values="fp32")
    return Judge(Backbone.load(base, device="cpu"), full, Calibration(inputs))


@pytest.mark.parametrize(
    ("name", "norm", "weight", "axis"),
    [
        ("llama", "model.layers.0.input_layernorm", "model.layers.0.self_attn.q_proj.weight", 0),
        ("gpt2", "transformer.h.0.ln_1", "h.0.attn.c_attn.weight", 1),
    ],
)
def test_scale_is_the_rms_of_a_column(
    model_folder: ModelFolder,
    finetune_folder: ModelFolder,
    tmp_path: Path,
    name: str,
    norm: str,
    weight: str,
    axis: int,
) -> None:
    """Of the full fine-tune. GPT-2 stores its matrices transposed: an input is a row of them."""
    base, tuned = model_folder(name), finetune_folder(name, scale=0.05)
    judge = judge_of(base, tuned, tmp_path)
    stored = next(n for n in judge.backbone.specs if n.endswith(weight))
    model = AutoModelForCausalLM.from_pretrained(tuned).eval()
    arrived: list[torch.Tensor] = []
    model.get_submodule(norm).register_forward_hook(lambda _, inputs, output: arrived.append(output))
    with torch.inference_mode():
        model(**AutoTokenizer.from_pretrained(tuned)(TEXT, return_tensors="pt"))
    rms = arrived[0].flatten(0, 1).square().mean(0).sqrt()
    relative = rms / rms.square().mean().sqrt()
    found = column_scales(judge, [stored])[stored]
    assert found.shape == ((1, 64) if axis == 0 else (64, 1))
    steps = STEPS * torch.log2(found.flatten())
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert bool(((steps - STEPS * torch.log2(relative)).abs() <= 0.501).all())


def test_only_linear_layers_have_scales(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base = model_folder("bert_classifier")
    judge = judge_of(base, finetune_folder("bert_classifier"), tmp_path)
    scales = column_scales(judge, [n for n, spec in judge.backbone.specs.items() if spec.is_matrix])
    assert scales
    assert not any("embeddings" in name for name in scales)
    for name, scale in scales.items():
        assert scale.shape == (1, judge.backbone.specs[name].shape[1])
        assert float(scale.min()) >= SMALLEST
        assert float(scale.square().mean()) == pytest.approx(1, rel=0.2)


def test_silent_columns_keep_a_little(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def silenced(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        norm = "model.layers.0.post_attention_layernorm.weight"
        return tensors | {norm: tensors[norm] * (torch.arange(64) >= 5)}

    tuned = pico.rewrite(llama_tuned, tmp_path / "tuned", silenced)
    scale = column_scales(judge_of(llama, tuned, tmp_path), [name])[name]
    assert scale[0, :5].tolist() == [SMALLEST] * 5
    assert float(scale[0, 5:].min()) > SMALLEST


def test_half_of_the_batches_is_enough_and_hooks_are_gone(
    llama: Path, llama_tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(llama, llama_tuned, tmp_path, texts(40))
    name = "model.layers.1.mlp.up_proj.weight"
    module = judge.backbone.model.get_submodule(name.removesuffix(".weight"))
    first = column_scales(judge, [name])[name]
    monkeypatch.setattr(importance, "EVERY", 1)
    both = column_scales(judge, [name])[name]
    assert not torch.equal(first, both)
    shortest = judge_of(llama, llama_tuned, tmp_path, tuple(sorted(texts(40), key=len)[:32]))
    assert torch.equal(first, column_scales(shortest, [name])[name])
    assert not module._forward_pre_hooks

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = judge.backbone.model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        column_scales(judge, [name])
    hook.remove()
    assert not module._forward_pre_hooks
