from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.measure import Bench, Sizes, compare, full_outputs, head_bytes, score_of, statistics_bytes
from tests import pico
from transformers import PreTrainedModel

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
TARGETS = torch.tensor([0, 1, 0, 0])
IDS = torch.arange(24).reshape(4, 6)


def ids_logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def test_accuracy_has_wilsons_interval() -> None:
    score = score_of(LOGITS, TARGETS)
    assert score.value == 0.75
    assert (score.low, score.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    certain = score_of(LOGITS[:3], TARGETS[:3])
    assert (certain.value, certain.high) == (1.0, pytest.approx(1.0))
    assert certain.low == pytest.approx(3 / (3 + 1.959964**2))


def test_perplexity_is_that_of_a_uniform_guess() -> None:
    score = score_of(torch.zeros(3, 5, 7), torch.ones(3, 5, dtype=torch.int64))
    assert (score.value, score.low, score.high) == pytest.approx((7.0, 7.0, 7.0))


def test_kl_is_that_from_the_fine_tune() -> None:
    full = torch.tensor([[math.log(3.0), 0.0]]).repeat(2, 1)  # p = 3/4, 1/4
    scores = compare(torch.zeros(2, 2), full, torch.tensor([0, 0]))
    assert scores.kl.value == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert compare(full, full, torch.tensor([0, 0])).kl.value == 0


def test_agreement_and_retained_are_against_the_fine_tune() -> None:
    outputs = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
    scores = compare(outputs, LOGITS, TARGETS)
    assert scores.agreement.value == 0.75
    assert scores.retained == pytest.approx(100 * 0.5 / 0.75)


def test_a_language_model_retains_less_where_perplexity_is_higher() -> None:
    targets = torch.ones(2, 3, dtype=torch.int64)
    full = torch.zeros(2, 3, 4)
    full[..., 1] = math.log(3.0)  # p = 1/2, perplexity 2
    scores = compare(torch.zeros(2, 3, 4), full, targets)
    assert scores.retained == pytest.approx(50.0)
    assert scores.score.value == pytest.approx(4.0)


def test_a_delta_is_judged_as_its_file(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base, tuned = model_folder("llama"), finetune_folder("llama", scale=0.1)
    bench, full = Bench(base), full_outputs(tuned, ids_logits)
    before = bench.backbone.compute_digest()
    whole = pico.delta_file(base, tuned, tmp_path / "whole", density=1.0, values="fp32")
    some = pico.delta_file(base, tuned, tmp_path / "some", density=0.1)
    assert torch.allclose(bench.outputs(whole, ids_logits), full, atol=1e-5)
    assert not torch.allclose(bench.outputs(some, ids_logits), full, atol=1e-2)
    assert torch.equal(bench.outputs(some, ids_logits, patched=False), ids_logits(bench.backbone.model))
    assert bench.backbone.compute_digest() == before
    assert head_bytes(whole) == 0
    bare = pico.delta_file(base, tuned, tmp_path / "bare", density=1.0, values="fp32", merge_statistics=False)
    assert statistics_bytes(bare) == 0
    assert statistics_bytes(some) == statistics_bytes(whole) > 0


def test_a_head_is_counted_apart_and_answers(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base, tuned = model_folder("bert_encoder"), finetune_folder("bert_classifier")
    file = pico.delta_file(base, tuned, tmp_path / "d", density=1.0, values="fp32")
    assert head_bytes(file) == pytest.approx((pico.HIDDEN + 1) * len(pico.LABELS) * 4, rel=0.1)  # compressed floats
    assert torch.allclose(Bench(base).outputs(file, ids_logits), full_outputs(tuned, ids_logits), atol=1e-5)


def test_sizes_leave_embeddings_and_vectors_out_of_the_matrices(model_folder: Callable[..., Path]) -> None:
    weights = pico.weights(model_folder("llama"))
    matrices = [t for name, t in weights.items() if t.dim() == 2 and "embed" not in name]
    sizes = Bench(model_folder("llama")).sizes
    assert sizes == Sizes(sum(t.numel() for t in weights.values()), sum(t.numel() for t in matrices))
