"""Tuning what costs no bytes: when it happens, what it may change, and that the resident model comes out as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.compress.problems import texts

from patchbay.adapters import open_finetuned
from patchbay.backbone import Backbone
from patchbay.checkpoint import Checkpoint
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.compress import Options, Report, _problem, compress
from patchbay.compress.distil import MIN_BATCHES, Distilled, distil
from patchbay.compress.mixture import Choice
from patchbay.compress.options import ScoreName
from patchbay.compress.parts import Part, SparsePart
from patchbay.compress.problem import Problem
from patchbay.compress.record import Record
from patchbay.compress.sampled_nps import SampledNps
from patchbay.compress.write import Writer
from patchbay.delta import DeltaFile
from patchbay.task_vector import TaskVector

ModelFolder = Callable[..., Path]
ENOUGH = Calibration(texts(32 * MIN_BATCHES + 8))
FEW = Calibration(texts(32))
EVERYTHING = Choice(8, 1.0, (1.0,) * 8)


@pytest.fixture
def folders(model_folder: ModelFolder, finetune_folder: ModelFolder) -> tuple[Path, Path]:
    return model_folder("bert_classifier", layers=1), finetune_folder("bert_classifier", layers=1, scale=0.05)


def problem_with(folders: tuple[Path, Path], inputs: Calibration, score: ScoreName = "kl") -> Problem:
    base, tuned = Checkpoint.open(folders[0]), open_finetuned(folders[1], Checkpoint.open(folders[0]))
    vector, options = TaskVector.from_models(base, tuned), Options()
    problem = _problem(vector, Writer(vector, tuned, options), options, Record(0))
    problem.judge = Judge(Backbone.load(folders[0], device="cpu"), problem.full(), inputs, score)
    return problem


def drawn(problem: Problem, choice: Choice = EVERYTHING) -> Mapping[str, Part]:
    return problem.prune(SampledNps(problem, Options(), choice=choice).pruner(0.05))


def run(folders: tuple[Path, Path], out: Path, inputs: Calibration = ENOUGH, **options: Any) -> Report:
    given = Options(**{"density": 0.05, "evaluations": 3, **options})
    return compress(*folders, out, given, calibration=inputs)


def test_the_divergence_falls_and_the_file_says_so(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tuned, untuned = run(folders, tmp_path / "tuned"), run(folders, tmp_path / "untuned", distil=False)
    assert tuned.divergence is not None and untuned.divergence is not None
    assert tuned.divergence < untuned.divergence
    assert (tuned.tuned, untuned.tuned) == (True, False)
    assert DeltaFile.open(tmp_path / "tuned").manifest.compression.params["tuned"] is True
    assert "tuned" not in DeltaFile.open(tmp_path / "untuned").manifest.compression.params
    assert tuned.num_bytes == pytest.approx(untuned.num_bytes, rel=0.05)


def test_few_batches_tune_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert not run(folders, tmp_path / "d", FEW).tuned
    assert not run(folders, tmp_path / "d", method="random").tuned


def test_a_fine_tune_that_is_its_base(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base = (folders[0], folders[0])
    assert run(base, tmp_path / "out").divergence == 0 and run(base, tmp_path / "kl", density=None, target_kl=0.1)
    assert run(base, tmp_path / "size", density=None, target_size=20_000).num_bytes < 20_000


def test_labels_tune_nothing(folders: tuple[Path, Path]) -> None:
    labels = tuple(pico.LABELS[number % 3] for number in range(len(ENOUGH.inputs)))
    problem = problem_with(folders, replace(ENOUGH, labels=labels), "accuracy")
    assert distil(problem, drawn(problem), vectors=True) == Distilled()


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("vectors", [True, False])
def test_the_model_comes_out_as_it_was(folders: tuple[Path, Path], vectors: bool, share: float) -> None:
    problem = problem_with(folders, ENOUGH)
    assert problem.judge is not None
    model = problem.judge.backbone.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = drawn(problem, replace(EVERYTHING, share=share))
    assert share == 0 or any(part.bands for part in parts.values() if isinstance(part, SparsePart))
    found = distil(problem, parts, vectors=vectors)
    assert found.scales.keys() == parts.keys()
    assert bool(found.whole) == vectors
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_a_seed_decides(folders: tuple[Path, Path]) -> None:
    problem = problem_with(folders, ENOUGH)
    parts = drawn(problem)
    first, again, other = (distil(problem, parts, vectors=True, seed=seed) for seed in (1, 1, 2))
    assert first.scales == again.scales != other.scales
    assert all(torch.equal(tensor, again.whole[name]) for name, tensor in first.whole.items())
