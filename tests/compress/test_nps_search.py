"""Searches of both forms of NPS on a classifier of a few thousand parameters: what they score, return and replay."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.compress.problems import texts

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.compress import Options, Report, compress
from patchbay.compress.search import Evaluation
from patchbay.delta import DeltaFile
from patchbay.errors import InvalidRecipe

ModelFolder = Callable[..., Path]
Run = Callable[..., tuple[Report, list[Evaluation], bytes]]
INPUTS = Calibration(texts(12))
SUPPORTS: list[dict[str, Any]] = [
    {"support": "topk", "scope": "retained"},
    {"support": "topk", "scope": "all"},
    {"support": "sampled"},
]
SEARCHES = [{**support, "optimizer": "cobyla", "groups": 4} for support in SUPPORTS]
SEARCHES += [{**SUPPORTS[number], "optimizer": "cmaes", "groups": 4} for number in (0, 2)]


@pytest.fixture
def run(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> Run:
    """`run(groups=4)`: the report, the new evaluations and the file's bytes."""
    base, tuned = model_folder("bert_classifier", layers=1), finetune_folder("bert_classifier", layers=1, scale=0.05)

    def compressed(
        history: Sequence[Evaluation] = (), calibration: Calibration = INPUTS, **options: Any
    ) -> tuple[Report, list[Evaluation], bytes]:
        seen: list[Evaluation] = []
        report = compress(
            base,
            tuned,
            tmp_path / "d",
            Options(**{"density": 0.1, "evaluations": 14, **options}),
            calibration=calibration,
            history=history,
            on_evaluation=seen.append,
        )
        return report, seen, (tmp_path / "d").read_bytes()

    return compressed


@pytest.mark.parametrize("options", SEARCHES)
def test_best_evaluated_point_is_what_is_written(run: Run, tmp_path: Path, options: dict[str, Any]) -> None:
    report, seen, _ = run(**options)
    best = max(seen, key=lambda evaluation: evaluation.score)
    params = DeltaFile.open(tmp_path / "d").manifest.compression.params
    weights = tuple(params[f"w{number}"] for number in range(1, 5))
    if options["support"] == "sampled":
        leading = (params["low_rank"], float(params.get("allocation") == "energy"))
        weights = (float(params["columns"]), *leading, *weights)
    assert weights == best.point
    assert report.score == best.score >= seen[0].score
    assert report.evaluations == len(seen)
    assert 6 <= len(seen) <= 14  # where singular vectors are all there is, there are no weights to search


def test_columns_are_weighed_where_that_helps(model_folder: ModelFolder, tmp_path: Path) -> None:
    """A model whose layers hear some columns 64 times louder than others."""

    def uneven(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loud = 4.0 * 2.0 ** -(torch.arange(64) % 7)
        return {n: t * loud if "LayerNorm.weight" in n else t for n, t in tensors.items()}

    base = pico.rewrite(model_folder("bert_classifier", layers=1), tmp_path / "base", uneven)
    tuned, seen = pico.perturb(base, tmp_path / "tuned", scale=0.001), list[Evaluation]()
    options = Options(density=0.1, evaluations=12, groups=1)
    compress(base, tuned, tmp_path / "d", options, calibration=INPUTS, on_evaluation=seen.append)
    manifest = DeltaFile.open(tmp_path / "d").manifest
    best = max(seen, key=lambda evaluation: evaluation.score)
    assert best.point[0] == 1.0
    assert manifest.compression.params["columns"] is True
    assert "sign_column_log" in {entry.values for entry in manifest.tensors.values() if entry.kind == "sparse"}


@pytest.mark.parametrize("options", SUPPORTS[:2])
def test_first_point_is_plain_magnitude_pruning(
    run: Run, model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, options: dict[str, Any]
) -> None:
    base, tuned = model_folder("bert_classifier", layers=1), finetune_folder("bert_classifier", layers=1, scale=0.05)
    full = pico.delta(base, tuned, tmp_path / "full", density=1.0, values="fp32")
    plain = pico.delta(base, tuned, tmp_path / "plain", density=0.1, values="fp32")
    judge = Judge(Backbone.load(base, device="cpu"), full, INPUTS)
    _, seen, _ = run(evaluations=1, **options)
    assert seen[0].point == (1.0,) * 8
    assert seen[0].score == pytest.approx(judge.score(plain), rel=1e-4)
    assert seen[0].score < 0


def test_first_point_of_the_sampled_form_is_its_rule(run: Run, tmp_path: Path) -> None:
    """With no evaluations left, that point is what is written."""
    _, seen, _ = run(evaluations=1)
    _, none, _ = run(evaluations=0)
    params = DeltaFile.open(tmp_path / "d").manifest.compression.params
    assert none == []
    assert seen[0].point == (0.0, 0.0, 0.0, *(params[f"w{number}"] for number in range(1, 9)))


@pytest.mark.parametrize("options", SEARCHES)
def test_interrupted_runs_end_with_the_same_bytes(run: Run, options: dict[str, Any]) -> None:
    report, seen, file = run(**options, evaluations=7)
    stored = [json.loads(json.dumps([e.point, e.score])) for e in seen]
    for cut in range(len(seen) + 1):
        history = [Evaluation(point, score) for point, score in stored[:cut]]
        again, new, same = run(history, **options, evaluations=7)
        assert same == file, f"cut after {cut}"
        assert new == seen[cut:]
        assert (again.evaluations, again.score) == (report.evaluations, report.score)


@pytest.mark.parametrize("options", SUPPORTS)
def test_history_of_other_inputs_or_options_is_refused(run: Run, options: dict[str, Any]) -> None:
    _, seen, _ = run(**options, groups=4, evaluations=6)
    for other in ({"calibration": Calibration(texts(12, seed=9)), "groups": 4}, {"groups": 5}):
        with pytest.raises(InvalidRecipe, match="start again without it") as caught:
            run(seen, **options, **other)
        assert caught.value.param == "history"


@pytest.mark.parametrize("options", [{"support": "sampled"}, {"support": "topk", "optimizer": "cmaes"}])
def test_seed_decides(run: Run, options: dict[str, Any]) -> None:
    first, again, other = (run(**options, seed=seed, evaluations=10) for seed in (3, 3, 4))
    assert (first[1], first[2]) == (again[1], again[2])
    assert first[1] != other[1]


@pytest.mark.parametrize("options", SUPPORTS)
@pytest.mark.parametrize("more", [{"density": 0.0}, {"evaluations": 0}])
def test_nothing_to_search_is_no_error(run: Run, options: dict[str, Any], more: dict[str, Any]) -> None:
    report, seen, _ = run(**options, **more)
    assert (report.evaluations, report.score, seen) == (0, None, [])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", SUPPORTS)
def test_few_groups(run: Run, options: dict[str, Any], groups: int) -> None:
    """CMA-ES has no search in one variable: COBYLA takes its place."""
    report, seen, _ = run(**options, groups=groups, optimizer="cmaes", evaluations=6)
    assert 1 <= len(seen) <= 6
    assert report.score == max(evaluation.score for evaluation in seen)


def test_search_improves_on_plain_magnitude(run: Run) -> None:
    report, seen, _ = run(support="topk", evaluations=25)
    assert report.score is not None
    assert report.score > 0.9 * seen[0].score


@pytest.mark.parametrize("score", ["accuracy", "balanced_accuracy", "log_likelihood"])
def test_labels_can_be_the_score(run: Run, score: str) -> None:
    labelled = Calibration(INPUTS.inputs, tuple(pico.LABELS[number % 3] for number in range(12)))
    report, seen, _ = run(calibration=labelled, score=score, evaluations=4)
    assert len(seen) == 4
    assert report.score is not None
    assert report.score <= 0 if score == "log_likelihood" else 0 <= report.score <= 1
