from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.families import corpus
from benchmarks.families.base import Case, kept_folder, no_progress
from benchmarks.families.language import Language, Shape, Training
from benchmarks.families.vision import Vision
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from patchbay_server.demo.train import BASE_TRAINING, FINETUNE_TRAINING

TINY = Shape(vocabulary=300, hidden=32, inner=64, layers=1, heads=2, context=32)
SHORT = Training(seconds=0.5, learning_rate=1e-3)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    """With a base that has seen a tenth of its text: reading all of it takes longer than this training."""
    language = Language(tmp_path_factory.mktemp("lm"), SHORT, replace(SHORT, seconds=0.2), TINY, max_test=5)
    some = corpus.general()[::10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "general", lambda: some)
        language.base(no_progress)
    return language


@pytest.fixture(scope="module")
def manual(language: Language) -> Case:
    return language.case(corpus.MANUAL, no_progress)


def test_a_folder_is_built_once_and_never_half(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "kept"

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x", "utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_folder(target, fail)
    assert list(target.parent.iterdir()) == []
    assert kept_folder(target, lambda folder: (folder / "whole").touch()) == target
    assert kept_folder(target, fail) == target
    assert [file.name for file in target.iterdir()] == ["whole"]


@pytest.mark.parametrize("name", corpus.NAMES)
def test_parts_of_a_domain_share_no_document(name: str) -> None:
    parts = {part: corpus.domain(name, part) for part in ("train", "calibration", "test")}
    assert all(parts.values())
    assert sum(map(len, parts["train"])) > 100_000
    assert sum(map(len, parts["test"])) > 50_000
    texts = [text for part in parts.values() for text in set(part)]
    assert len(texts) == len(set(texts))


def test_no_paragraph_of_the_manual_is_in_two_parts() -> None:
    parts = [
        {" ".join(paragraph.split()) for text in corpus.domain(corpus.MANUAL, part) for paragraph in text.split("\n\n")}
        for part in ("train", "calibration", "test")
    ]
    together = parts[0] | parts[1] | parts[2]
    assert len(together - {""}) == sum(len(part - {""}) for part in parts)


def test_the_base_sees_nothing_of_the_domains() -> None:
    general = set(corpus.general())
    assert sum(map(len, general)) > 3_000_000
    long = {text for name in corpus.NAMES for text in corpus.domain(name, "test") if len(text) > 200}
    assert long
    assert general.isdisjoint(long)


def test_the_language_model_is_an_ordinary_folder(language: Language, manual: Case) -> None:
    assert language.has_base()
    tokenizer = AutoTokenizer.from_pretrained(manual.base, local_files_only=True)
    ids = tokenizer("def spam(eggs):\n    return 1")["input_ids"]
    assert tokenizer.decode(ids) == "def spam(eggs):\n    return 1"
    assert max(ids) < TINY.vocabulary
    lines = manual.calibration.read_text("utf-8").splitlines()
    assert 10 <= len(lines) <= 256


def test_a_window_is_scored_on_its_next_tokens(language: Language, manual: Case) -> None:
    model = AutoModelForCausalLM.from_pretrained(manual.finetuned, local_files_only=True).eval()
    logits, targets = language.logits(corpus.MANUAL, model), language.targets(corpus.MANUAL)
    assert logits.shape == (5, TINY.context - 1, TINY.vocabulary)
    assert targets.shape == (5, TINY.context - 1)
    windows = language._windows(corpus.MANUAL)
    with torch.inference_mode():
        expected = model(input_ids=windows, labels=windows).loss
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_case_is_trained_once(language: Language, manual: Case) -> None:
    steps: list[int] = []
    assert language.case(corpus.MANUAL, lambda *step: steps.append(step[0])) == manual
    assert not steps


def test_vision_cases_hold_the_images_that_scores_do_not_come_from(tmp_path: Path) -> None:
    short = replace(BASE_TRAINING, epochs=1), replace(FINETUNE_TRAINING, epochs=1)
    vision = Vision(tmp_path, *short, max_test=7)
    assert not vision.has_base()
    case = vision.case("noisy", no_progress)
    assert np.load(case.calibration).shape == (256, 1, 16, 16)
    model = AutoModelForImageClassification.from_pretrained(case.finetuned, local_files_only=True).eval()
    assert vision.logits("noisy", model).shape == (7, 10)
    assert vision.targets("noisy").shape == (7,)


def test_nothing_is_needed_that_distributions_leave_out() -> None:
    places = {place.split("/")[0] for places in corpus.DOMAINS.values() for place in places}
    assert places.isdisjoint({"test", "idlelib", "tkinter", "lib2to3", "distutils", "ensurepip"})
    assert all((corpus.STDLIB / place).exists() for place in places)
