"""From an encoder and recordings with labels to a classifier."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.recordings import write_marked

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTForPreTraining
from patchbay.models.neuript.steps import Steps
from patchbay.training.examples import Parts, Split, examples, split
from patchbay.training.finetune import CALIBRATION, Options, Outcome, Progress, finetune
from patchbay.training.labels import by_annotations

STEPS = Steps(window_seconds=1.0, rejects=False)
OPTIONS = Options(epochs=2, batch_size=8, highest_rate=1e-3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    NeurIPTForPreTraining(NeurIPTConfig.of_size("test")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Two seconds with the rhythm, two without."""
    folder = tmp_path_factory.mktemp("data")
    marks = [(2.0 * number, 2.0, f"T{number % 2}") for number in range(30)]
    file = write_marked(folder / "x.edf", marks, seconds=60)
    found = examples([file], by_annotations(folder, {"T0": "open", "T1": "closed"}), STEPS)
    return split(found, Split(validation=0.2, test=0.3))


@pytest.fixture(scope="module")
def trained(base: Path, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[Progress]]:
    out, told = tmp_path_factory.mktemp("out"), list[Progress]()
    return out, finetune(base, parts, STEPS, out, OPTIONS, told.append), told


def test_the_rhythm_is_found(trained: tuple[Path, Outcome, list[Progress]]) -> None:
    _, outcome, _ = trained
    assert outcome.classes == ("closed", "open") and outcome.windows == {"train": 30, "validation": 12, "test": 18}
    assert list(outcome.scores) == ["majority", "band power + LDA", "head alone", "fine-tuned"]
    found = {name: score.balanced_accuracy for name, score in outcome.scores.items() if score is not None}
    assert found["majority"] == 0.5 and min(found["band power + LDA"], found["head alone"], found["fine-tuned"]) > 0.9
    assert sum(map(sum, outcome.confusion)) == 18


def test_the_folder_answers_as_was_reported(trained: tuple[Path, Outcome, list[Progress]], parts: Parts) -> None:
    folder, outcome, _ = trained
    model = NeurIPTForEEGClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "closed", 1: "open"}
    assert Steps.of(model.config.preprocessing) == STEPS, "what recordings of requests have to go through"
    (test,) = parts["test"]
    montage = test.source.windows.montage
    rows = len(test.labels)
    with torch.no_grad():
        logits = model(
            test.source.windows.signal,
            montage.positions.expand(rows, -1, -1),
            montage.lobes.expand(rows, -1, -1),
        ).logits
    table = [[0, 0], [0, 0]]
    for label, answer in zip(test.labels, logits.argmax(1).tolist(), strict=True):
        table[outcome.classes.index(label)][answer] += 1
    assert table == outcome.confusion


def test_training_windows_for_compression(trained: tuple[Path, Outcome, list[Progress]], parts: Parts) -> None:
    batch = load_file(trained[0] / CALIBRATION)
    assert {name: len(tensor) for name, tensor in batch.items()} == {"signal": 30, "positions": 30, "lobes": 30}
    assert torch.equal(batch["signal"], parts["train"][0].source.windows.signal)


def test_who_waits_is_told(trained: tuple[Path, Outcome, list[Progress]]) -> None:
    told = trained[2]
    assert [at.done for at in told if at.stage == "features"][-1] == 42
    training = [at for at in told if at.stage == "training"]
    assert [at.done for at in training if at.note] == [4, 8] and training[-1].of == 8


def test_the_same_seed_is_the_same_model(
    trained: tuple[Path, Outcome, list[Progress]], base: Path, parts: Parts, tmp_path: Path
) -> None:
    finetune(base, parts, STEPS, tmp_path, OPTIONS)
    first, second = (load_file(folder / "model.safetensors") for folder in (trained[0], tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_frozen_encoder_stays(base: Path, parts: Parts, tmp_path: Path) -> None:
    outcome = finetune(base, parts, STEPS, tmp_path, replace(OPTIONS, epochs=0))
    assert list(outcome.scores) == ["majority", "band power + LDA", "head alone"] and outcome.epochs == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path))
    encoder = [name for name in after if name.startswith("neuript.")]
    assert encoder and all(torch.equal(before[name], after[name]) for name in encoder)


def test_the_best_epoch_is_kept(base: Path, parts: Parts, tmp_path: Path) -> None:
    """At a rate at which everything falls to pieces the head's own answers are the best."""
    wild = replace(OPTIONS, highest_rate=3.0, epochs=9, patience=2)
    outcome = finetune(base, parts, STEPS, tmp_path, wild)
    alone, tuned = outcome.scores["head alone"], outcome.scores["fine-tuned"]
    assert alone is not None and tuned is not None and tuned.balanced_accuracy >= alone.balanced_accuracy - 1e-9
    assert outcome.epochs < 9 and outcome.kept < outcome.epochs


def test_of_epochs_that_are_alike_to_the_bit_the_first_is_kept(base: Path, parts: Parts, tmp_path: Path) -> None:
    """At a rate at which no answer changes that is the head alone."""
    outcome = finetune(base, parts, STEPS, tmp_path, replace(OPTIONS, highest_rate=1e-30, epochs=3, patience=2))
    assert len({line["validation"] for line in outcome.history}) == 1 and outcome.history[0]["validation"] is not None
    assert (outcome.kept, outcome.epochs) == (0, 2), "and it ends when nothing has risen"
    assert outcome.warnings[0].startswith("no epoch was better than the head alone")


def test_a_validation_part_that_lacks_a_class(base: Path, parts: Parts, tmp_path: Path) -> None:
    lacking = [one.take([at for at, label in enumerate(one.labels) if label == "open"]) for one in parts["validation"]]
    for name, validation, count in (("some", lacking, 1), ("all", parts["validation"], 0), ("none", [], 0)):
        found = {**parts, "validation": validation}
        outcome = finetune(base, found, STEPS, tmp_path / name, replace(OPTIONS, epochs=0))
        said = [text for text in outcome.warnings if "validation part is of the class 'closed'" in text]
        assert len(said) == count, name


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_a_training_that_falls_apart(base: Path, parts: Parts, tmp_path: Path, validation: float) -> None:
    """Its weights are NaN, or their answers are: the head alone is kept, and that is said."""
    found = parts if validation else {**parts, "validation": []}
    outcome = finetune(base, found, STEPS, tmp_path, replace(OPTIONS, highest_rate=1e30))
    assert outcome.warnings[:2] == (
        "the training diverged in epoch 1, and ended: take a lower --rate",
        "no epoch was better than the head alone: that is kept, on the base's own encoder",
    )
    assert outcome.kept == 0 and [line["validation"] for line in outcome.history] == [None]
    assert outcome.scores["fine-tuned"] == outcome.scores["head alone"]
    tensors = load_file(tmp_path / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_without_a_validation_part_nothing_is_said_of_it(base: Path, parts: Parts, tmp_path: Path) -> None:
    outcome = finetune(base, {**parts, "validation": []}, STEPS, tmp_path, OPTIONS)
    assert [line["validation"] for line in outcome.history] == [None, None]
    assert outcome.kept == outcome.epochs == 2 and not any("validation" in text for text in outcome.warnings)


def test_a_base_that_answers_nothing(parts: Parts, tmp_path: Path) -> None:
    model = NeurIPTForPreTraining(NeurIPTConfig.of_size("test"))
    with torch.no_grad():
        next(model.neuript.parameters()).fill_(float("nan"))
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="the base answers NaN or infinity") as caught:
        finetune(tmp_path / "base", parts, STEPS, tmp_path / "out", OPTIONS)
    assert caught.value.param == "base" and not (tmp_path / "out").exists()


def test_what_is_no_encoder(base: Path, parts: Parts, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    other = tmp_path / "deeper"
    other.mkdir()
    config |= {"merges": [1, 4, 1, 2, 1, 2, 1], "experts": [0, 0, 2, 2, 2, 3, 0]}
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").symlink_to(base / "model.safetensors")
    with pytest.raises(InputError, match=r"does not hold this encoder: 'blocks\.6"):
        finetune(other, parts, STEPS, tmp_path / "out", OPTIONS)


def test_windows_of_many_channels_are_worked_through_some_at_a_time(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is random, to the same losses."""
    config = NeurIPTConfig.of_size("test", dropout=0.0, router_noise=0.0)
    NeurIPTForPreTraining(config).save_pretrained(tmp_path / "base")
    once = replace(OPTIONS, epochs=1)
    whole = finetune(tmp_path / "base", parts, STEPS, tmp_path / "whole", once)
    monkeypatch.setattr("patchbay.training.memory.BUDGET", 4 << 20)
    small = finetune(tmp_path / "base", parts, STEPS, tmp_path / "small", once)
    assert small.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=0.02)
    assert small.history[0]["loss"] != whole.history[0]["loss"], "in parts"


def test_nothing_is_written_over(trained: tuple[Path, Outcome, list[Progress]], base: Path, parts: Parts) -> None:
    before = (trained[0] / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(InputError, match="is there already and not empty: take another --out"):
        finetune(base, parts, STEPS, trained[0], OPTIONS)
    assert (trained[0] / "model.safetensors").stat().st_mtime_ns == before
