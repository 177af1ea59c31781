"""Fine-tunes that are trained, compressed and served: what answers cost and what they are worth, in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.families import corpus
from benchmarks.families.base import no_progress
from benchmarks.families.language import Language, Shape, Training
from benchmarks.measure import score_of
from benchmarks.methods import Effort
from benchmarks.systems.models import Size
from benchmarks.trained import Trained, trained
from tests.long import long

from benchmarks import serving
from benchmarks import trained as module
from patchbay.backbone import Backbone
from patchbay.delta import DeltaFile

pytestmark = long

TINY = Shape(vocabulary=300, hidden=64, inner=128, layers=1, heads=2, context=32)
SHORT = Training(seconds=0.5, learning_rate=1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two fine-tunes of a base that has seen a tenth of its text: reading all of it takes longer than its training."""
    cache = tmp_path_factory.mktemp("trained")
    family = Language(cache, SHORT, replace(SHORT, learning_rate=3e-3), TINY, max_test=5, max_tasks=2)
    some = corpus.general()[::10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "general", lambda: some)
        family.base(no_progress)
    return Trained(family, cache / "files", "fp32", Effort(2, 8))


def test_files_are_as_large_as_asked_and_made_once(model: Trained) -> None:
    parameters = model.load().num_parameters
    small, large = (model.delta_files(2, Size(bits)) for bits in (2.0, 6.0))
    for bits, files in ((2.0, small), (6.0, large)):
        assert all(file.stat().st_size <= bits * parameters / 8 for file in files)
    assert DeltaFile.open(small[0]).manifest.compression.method == "nps"
    before = [file.stat().st_mtime_ns for file in small]
    assert [file.stat().st_mtime_ns for file in model.delta_files(2, Size(2.0))] == before
    assert model.delta_files(1, Size(2.0)) == small[:1]


def test_perplexities_are_of_base_delta_and_finetune(model: Trained) -> None:
    [task, other] = model.family.tasks
    found = model.quality(2, Size(6.0))["perplexity"]
    assert list(found) == [task, other]
    case = model.family.case(task, no_progress)
    for name, folder in (("base", case.base), ("finetune", case.finetuned)):
        backbone = Backbone.load(folder, dtype="fp32")
        expected = score_of(model.family.logits(task, backbone.model), model.family.targets(task)).value
        assert found[task][name] == pytest.approx(expected)
    assert found[task]["finetune"] < found[task]["base"]
    assert found[task]["delta"] == pytest.approx(found[task]["finetune"], rel=0.05)
    assert abs(found[task]["delta"] - found[task]["finetune"]) < found[task]["base"] - found[task]["delta"]


def test_requests_begin_like_held_out_texts(model: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUICK_BITS", (6.0,))
    [work] = model.works(quick=True).values()
    assert work.num_deltas == 2 and len(work.asks) == module.REQUESTS
    assert len({ask.prompt for ask in work.asks}) == module.REQUESTS
    for number, task in enumerate(model.family.tasks):
        rows = model.family.targets(task)[:, : TINY.context // 4].tolist()
        assert all(list(ask.prompt) in rows for ask in work.asks if ask.terms == ((number, 1.0),))
    assert all(len(ask.prompt) + ask.max_tokens <= TINY.context for ask in work.asks)

    lines = serving.measure(replace(work, systems=("base", "automatic", "swap")), model, 1)
    assert [line["system"] for line in lines] == ["base", "automatic", "swap"]
    for line in lines:
        assert line["perplexity"].keys() == set(model.family.tasks)
        assert len(line["delta_bytes"]) == 2 and len(line["times"][0]) == module.REQUESTS


def test_weights_have_the_dtype_that_is_served(model: Trained) -> None:
    assert replace(model, dtype="bf16").load().model.dtype is torch.bfloat16


def test_the_models_are_those_of_the_compression_benchmark(tmp_path: Path) -> None:
    full, quick = (trained(tmp_path, "bf16", quick=quick) for quick in (False, True))
    assert full.family.cache == quick.family.cache == tmp_path / "models"
    assert full.family.pretraining.seconds > quick.family.pretraining.seconds
    assert len(full.family.tasks) == 4 and len(quick.family.tasks) == 2
