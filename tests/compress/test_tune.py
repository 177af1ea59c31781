"""The scale that is found is the best of those that were tried, judged as served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests import pico

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.tune import MAX_GRID, tune
from patchbay.delta import read_delta
from patchbay.errors import InvalidRecipe, NotFound, UnknownMethod
from patchbay.execute.patch import Patcher
from patchbay.merge import build, parse, settled

ModelFolder = Callable[..., Path]
TEXTS = ("the cat runs", "a big dog eats one fox", "my owl likes good film", "bad", "red green two is not small")
INPUTS = {"a": Calibration(TEXTS), "b": Calibration(TEXTS[:3])}


@pytest.fixture(scope="module")
def base(model_folder: ModelFolder) -> Path:
    return model_folder("bert_classifier")


@pytest.fixture(scope="module")
def paths(base: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A delta file and a whole model."""
    folder = tmp_path_factory.mktemp("deltas")
    tuned = {"a": finetune_folder("bert_classifier", 1, 0.2), "b": finetune_folder("bert_classifier", 2, 0.2)}
    return {"a": pico.delta_file(base, tuned["a"], folder / "a", density=0.3), "b": tuned["b"]}


def divergence(base: Path, file: Path, text: str) -> float:
    """Of one term alone, by the judge of compression."""
    backbone = Backbone.load(base, device="cpu")
    delta = read_delta(file, backbone.specs, backbone.fingerprint)
    judge = Judge(backbone, delta, INPUTS["a"])
    merged = build(settled(parse(text), {"a": "a"}), [delta], backbone)
    with Patcher(backbone).patched(merged.plan, [delta]):
        return judge.batch_divergence(range(judge.num_batches))


def test_the_best_of_what_was_tried(base: Path, paths: Mapping[str, Path]) -> None:
    reported: list[tuple[int, int]] = []
    tuned = tune(base, parse("a + b"), paths, INPUTS, on_progress=lambda done, of, _: reported.append((done, of)))
    assert tuned.best.divergence == min(trial.divergence for trial in tuned.trials)
    assert tuned.recipe == parse("a + b").model_copy(update={"scale": tuned.best.scale})
    assert tuned.best.divergences.keys() == {"a", "b"}
    for trial in tuned.trials:
        assert trial.divergence == pytest.approx(sum(trial.divergences.values()) / 2)
    assert reported == [(number, 7) for number in range(1, len(tuned.trials) + 1)]
    again = tune(base, parse(tuned.recipe.describe() or ""), paths, INPUTS)
    assert again == tuned  # the recipe's own scale is not looked at


def test_a_term_alone_is_best_as_it_is(base: Path, paths: Mapping[str, Path]) -> None:
    tuned = tune(base, parse("a"), {"a": paths["a"]}, {"a": INPUTS["a"]})
    assert tuned.best.scale == 1 and tuned.best.divergence == pytest.approx(0, abs=1e-9)
    half = next(trial for trial in tuned.trials if trial.scale == 0.5)
    assert half.divergence == pytest.approx(divergence(base, paths["a"], "0.5*a"), rel=1e-6)


def test_a_grid_of_parameters(base: Path, paths: Mapping[str, Path]) -> None:
    grid = {"lambda1": (0.0, 0.5), "rescale": (True, False)}
    tuned = tune(base, parse("neuromerging(a, b; lambda2=0.9)"), paths, INPUTS, grid=grid)
    tried = {tuple(trial.params.items()) for trial in tuned.trials}
    assert tried == {(("lambda1", one), ("rescale", other)) for one in grid["lambda1"] for other in grid["rescale"]}
    assert tuned.recipe.params == {"lambda2": 0.9, **tuned.best.params}
    assert tuned.best.divergence == min(trial.divergence for trial in tuned.trials)


@pytest.mark.parametrize(
    ("text", "change", "error", "message"),
    [
        ("a + c", {}, NotFound, "--delta c=PATH"),
        ("a", {}, InvalidRecipe, "'b', which is none of the terms"),
        ("a + b", {"calibrations": {"a": INPUTS["a"]}}, InvalidRecipe, "--calibration b=FILE"),
        ("a + b", {"grid": {"lambda1": (0.0,)}}, InvalidRecipe, "no parameter 'lambda1'"),
        ("a + b", {"grid": {"lambda1": ()}}, InvalidRecipe, "0 combinations"),
        ("ties(a, b)", {"grid": {"seed": tuple(range(MAX_GRID + 1))}}, InvalidRecipe, "65 combinations"),
        ("slerp(a, b; t=word)", {}, InvalidRecipe, "'t' of slerp"),
        ("average(a, b)", {}, UnknownMethod, "average"),
    ],
)
def test_what_is_refused(
    base: Path,
    paths: Mapping[str, Path],
    text: str,
    change: Mapping[str, object],
    error: type[Exception],
    message: str,
) -> None:
    given = {"calibrations": INPUTS, **change}
    with pytest.raises(error, match=message):
        tune(base, parse(text), paths, given.pop("calibrations"), **given)
