"""The judge against models that transformers runs, on backbones of every task it scores."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import pico
from tests.compress.problems import texts
from tests.delta.hybrids import hybrid_delta
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from patchbay.backbone import Backbone
from patchbay.checkpoint import raw_bytes
from patchbay.compress import calibration
from patchbay.compress.calibration import Calibration, Judge
from patchbay.delta import Delta
from patchbay.errors import InputError, UnsupportedTask
from patchbay.models.inputs import ArrayInput, ImageInput

ModelFolder = Callable[..., Path]
TEXTS = Calibration(texts(20))
GENERATOR = np.random.default_rng(0)
PIXELS = Calibration(tuple(ArrayInput(GENERATOR.normal(size=(3, 16, 16)).astype(np.float32)) for _ in range(6)))
CASES = {
    "bert_classifier": TEXTS,
    "bert_encoder": TEXTS,
    "llama": TEXTS,
    "gpt2": TEXTS,
    "t5": TEXTS,
    "vit": PIXELS,
    "resnet": PIXELS,
    "clip_vision": PIXELS,
}


def bits(backbone: Backbone) -> Mapping[str, bytes]:
    return {name: bytes(raw_bytes(tensor.clone())) for name, tensor in backbone.model.state_dict().items()}


def deltas(base: Path, tuned: Path, out: Path, density: float = 0.1) -> tuple[Delta, Delta]:
    """The whole fine-tune and a pruned one."""
    full = pico.delta(base, tuned, out / "full", density=1.0, values="fp32")
    return full, pico.delta(base, tuned, out / "pruned", density=density, values="fp32")


def judge_of(base: Path, full: Delta, inputs: Calibration, **options: Any) -> Judge:
    return Judge(Backbone.load(base, device="cpu"), full, inputs, **options)


def logits(folder: Path, delta: Delta | None = None, problem: str | None = None) -> torch.Tensor:
    """fp32 [inputs, classes] of a classifier folder, with the delta added by hand, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    state = model.state_dict()
    for name, difference in _differences(delta).items():
        state[name] += difference
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS.inputs])


def _differences(delta: Delta | None) -> dict[str, torch.Tensor]:
    if delta is None:
        return {}
    return {name: delta.difference(name) for name in {*delta.matrices, *delta.vectors, *delta.factors}}


@pytest.mark.parametrize("name", CASES)
def test_full_fine_tune_is_at_no_distance_and_backbone_is_left_alone(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    base, tuned = model_folder(name), finetune_folder(name, scale=0.05)
    full, pruned = deltas(base, tuned, tmp_path)
    backbone = Backbone.load(base, device="cpu")
    before = bits(backbone)
    judge = Judge(backbone, full, CASES[name])
    assert judge.divergence(full) == pytest.approx(0, abs=1e-7)
    distance = judge.divergence(pruned)
    assert math.isfinite(distance)
    assert distance > 1e-5
    assert judge.score(pruned) == -distance
    judge.run()
    assert bits(backbone) == before


def test_backbone_is_itself_after_a_failure(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    full, _ = deltas(llama, llama_tuned, tmp_path)
    backbone = Backbone.load(llama, device="cpu")
    before = bits(backbone)
    judge = Judge(backbone, full, TEXTS)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = backbone.model.register_forward_hook(fail)
    for call in (lambda: judge.divergence(full), lambda: Judge(backbone, full, TEXTS)):
        with pytest.raises(RuntimeError, match="out of memory"):
            call()
        assert bits(backbone) == before
    hook.remove()
    assert judge.divergence(full) == pytest.approx(0, abs=1e-7)


def test_divergence_is_the_mean_kl_of_a_classifier(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base, tuned = model_folder("bert_classifier"), finetune_folder("bert_classifier", scale=0.1)
    full, pruned = deltas(base, tuned, tmp_path)
    p, q = (torch.log_softmax(logits(folder, delta), -1) for folder, delta in ((tuned, None), (base, pruned)))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert expected > 1e-4
    assert judge_of(base, full, TEXTS).divergence(pruned) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["hybrid", "low_rank"])
def test_candidates_may_have_factors(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, kind: str
) -> None:
    base, tuned = model_folder("bert_classifier"), finetune_folder("bert_classifier", scale=0.1)
    full = pico.delta(base, tuned, tmp_path / "full", density=1.0, values="fp32")
    part = hybrid_delta(base, tmp_path / "part", {"bert.encoder.layer.0.output.dense.weight": kind})
    p, q = (torch.log_softmax(logits(folder, delta), -1) for folder, delta in ((tuned, None), (base, part)))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert judge_of(base, full, TEXTS).divergence(part) == pytest.approx(expected, rel=1e-3)


def test_divergence_is_the_mean_kl_over_the_tokens_of_answers(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base, tuned = model_folder("t5"), finetune_folder("t5", scale=0.3, seed=3)
    full, pruned = deltas(base, tuned, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    whole, candidate = (AutoModelForSeq2SeqLM.from_pretrained(folder).eval() for folder in (tuned, base))
    state = candidate.state_dict()
    for name, difference in _differences(pruned).items():
        state[name] += difference
    sums, lengths = 0.0, []
    with torch.inference_mode():
        for text in TEXTS.inputs:
            ids = tokenizer(text, return_tensors="pt").input_ids
            answer = whole.generate(ids, do_sample=False, max_new_tokens=32)[:, :-1]  # nothing follows its last token
            p, q = (torch.log_softmax(m(ids, decoder_input_ids=answer).logits, -1) for m in (whole, candidate))
            sums += float((p.exp() * (p - q)).sum())
            lengths.append(answer.shape[1])
    assert len(set(lengths)) > 1  # or no answer ends before another, and the mask does nothing
    assert judge_of(base, full, TEXTS).divergence(pruned) == pytest.approx(sums / sum(lengths), rel=1e-3)


@pytest.mark.parametrize(
    "told", [{"num_beams": 3, "num_return_sequences": 3}, {"return_dict_in_generate": True}, {"min_length": 30}]
)
def test_answers_are_greedy_whatever_the_folder_asks_for(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, told: dict[str, Any]
) -> None:
    base, tuned = model_folder("t5"), finetune_folder("t5", scale=0.3, seed=3)
    full, pruned = deltas(base, tuned, tmp_path)
    plain = judge_of(base, full, TEXTS).divergence(pruned)
    other = shutil.copytree(base, tmp_path / "other")
    file = other / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | told), "utf-8")
    assert judge_of(other, full, TEXTS).divergence(pruned) == plain


def test_chosen_tokens_are_spread_over_all_batches() -> None:
    masks = [torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0, 0]]), torch.tensor([[1, 1, 1, 1]])]
    batches = [{"attention_mask": mask} for mask in masks]
    for limit in range(1, 12):
        found = [place for batch in calibration._thinned(batches, limit) for place in batch["chosen"].tolist()]
        assert 1 <= len(found) <= limit
    every = calibration._thinned(batches, 10)
    assert [batch["chosen"].tolist() for batch in every] == [[0, 1, 3, 4, 5], [0], [0, 1, 2, 3]]
    # The third of the first five, and of the second: the batch in between has none.
    assert [batch["chosen"].tolist() for batch in calibration._thinned(batches, 2)] == [[3], [1]]


@pytest.mark.parametrize(("limit", "value", "batches"), [("BATCH", 3, 7), ("BATCH_CHARACTERS", 60, 12)])
def test_batches_change_nothing(
    model_folder: ModelFolder,
    finetune_folder: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
    batches: int,
) -> None:
    base, tuned = model_folder("gpt2"), finetune_folder("gpt2", scale=0.05)
    full, pruned = deltas(base, tuned, tmp_path)
    whole = judge_of(base, full, TEXTS)
    monkeypatch.setattr(calibration, limit, value)
    cut = judge_of(base, full, TEXTS)
    assert (whole.num_batches, cut.num_batches) == (1, batches)
    assert cut.divergence(pruned) == pytest.approx(whole.divergence(pruned), rel=1e-4)


def test_tokens_of_a_language_model_are_thinned(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = model_folder("llama"), finetune_folder("llama", scale=0.05)
    full, pruned = deltas(base, tuned, tmp_path)
    every = judge_of(base, full, TEXTS).divergence(pruned)
    monkeypatch.setattr(calibration, "MAX_OUTPUTS", 40 * pico.VOCAB)
    some = judge_of(base, full, TEXTS)
    assert sum(len(part) for part in some._reference) <= 40
    assert some.divergence(pruned) == pytest.approx(every, rel=0.5)
    assert some.divergence(full) == pytest.approx(0, abs=1e-7)


def test_label_scores(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    """Texts are batched by length: labels have to follow them."""
    base, tuned = model_folder("bert_classifier"), finetune_folder("bert_classifier", scale=0.1)
    full, pruned = deltas(base, tuned, tmp_path)
    log_p = torch.log_softmax(logits(base, pruned), -1)
    ids = torch.tensor([0, 1, 2, 1, 1, 0, 2, 1, 1, 1] * 2)
    hits = (log_p.argmax(-1) == ids).double()
    expected = {
        "accuracy": hits.mean(),
        "balanced_accuracy": torch.stack([hits[ids == label].mean() for label in range(3)]).mean(),
        "log_likelihood": log_p[torch.arange(20), ids].mean(),
    }
    labelled = Calibration(TEXTS.inputs, tuple(pico.LABELS[number] for number in ids))
    for score, value in expected.items():
        assert judge_of(base, full, labelled, score=score).score(pruned) == pytest.approx(float(value), rel=1e-4), score


def test_head_of_the_fine_tune_answers(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    full, pruned = deltas(base, tuned, tmp_path, density=0.5)
    labelled = Calibration(TEXTS.inputs, tuple(pico.LABELS[n] for n in logits(tuned).argmax(-1).tolist()))
    judge = judge_of(base, full, labelled, score="accuracy")
    assert judge.score(full) == 1.0
    assert judge.divergence(full) == pytest.approx(0, abs=1e-7)
    assert judge.divergence(pruned) > 1e-6


def headed(folder: Path, out: Path, problem: str, scale: float = 1.0) -> Path:
    """A copy of another problem type, whose logits are that much larger."""
    changed = pico.reconfigure(folder, out, problem_type=problem)
    tensors = pico.weights(changed)
    pico.save_weights(changed, tensors | {n: t * scale for n, t in tensors.items() if n.startswith("classifier.")})
    return changed


@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_every_label_of_several_counts(model_folder: ModelFolder, tmp_path: Path, scale: float) -> None:
    """The mean sum of binary divergences, also where a probability is no fp32 number."""
    base = headed(model_folder("bert_classifier"), tmp_path / "base", "multi_label_classification", scale)
    tuned = pico.perturb(base, tmp_path / "tuned", scale=0.05)
    full, pruned = deltas(base, tuned, tmp_path)
    one, other = (logits(folder, delta).double() for folder, delta in ((tuned, None), (base, pruned)))
    terms = [
        (sign * one).sigmoid()
        * (torch.nn.functional.logsigmoid(sign * one) - torch.nn.functional.logsigmoid(sign * other))
        for sign in (1, -1)
    ]
    expected = float((terms[0] + terms[1]).sum(-1).mean())
    judge = judge_of(base, full, TEXTS)
    assert judge.divergence(pruned) == pytest.approx(expected, rel=1e-2)
    labelled = Calibration(TEXTS.inputs, ("cat",) * 20)
    with pytest.raises(UnsupportedTask, match="one label an input"):
        judge_of(base, full, labelled, score="accuracy")


def test_regressions_are_compared_by_their_numbers(model_folder: ModelFolder, tmp_path: Path) -> None:
    """A softmax of one output is 1 for every candidate."""
    base = model_folder("bert_classifier", labels=("score",))
    tuned = pico.perturb(base, tmp_path / "tuned", scale=0.05)
    full, pruned = deltas(base, tuned, tmp_path)
    expected = float((logits(tuned) - logits(base, pruned)).square().sum(-1).mean())
    assert expected > 1e-6
    assert judge_of(base, full, TEXTS).divergence(pruned) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "inputs", "options", "error", "message"),
    [
        ("t5", TEXTS, {"score": "accuracy"}, UnsupportedTask, "only a classifier"),
        ("llama", TEXTS, {"score": "accuracy"}, UnsupportedTask, "only a classifier"),
        ("bert_encoder", TEXTS, {"score": "log_likelihood"}, UnsupportedTask, "only a classifier"),
        ("bert_classifier", TEXTS, {"score": "accuracy"}, InputError, "needs labels"),
        ("bert_classifier", Calibration(("a",), ("fish",)), {"score": "accuracy"}, InputError, "no class 'fish'"),
        ("bert_classifier", PIXELS, {}, InputError, "takes texts"),
        ("vit", TEXTS, {}, InputError, "takes"),
        ("vit", Calibration((ArrayInput(np.ones((3, 8, 8))),)), {}, InputError, "has shape"),
        ("vit", Calibration((ArrayInput(np.full((3, 16, 16), np.nan)),)), {}, InputError, "NaN"),
        ("vit", Calibration((ImageInput(b"GIF"),)), {}, InputError, "preprocessor_config"),
    ],
)
def test_inputs_that_do_not_suit_the_model(
    model_folder: ModelFolder,
    finetune_folder: ModelFolder,
    tmp_path: Path,
    name: str,
    inputs: Calibration,
    options: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    full, _ = deltas(model_folder(name), finetune_folder(name), tmp_path)
    with pytest.raises(error, match=message):
        judge_of(model_folder(name), full, inputs, **options)
