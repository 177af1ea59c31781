"""The scale of a merge, and parameters of its method, by calibration inputs of the merged tasks and without labels.

Every merge is judged by KL(fine-tune || merge) on each task's own inputs under its own head; the mean over tasks is
what is made small. Knows nothing of servers and stores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.terms import BaseFolder, Opened, Progress, open_term
from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe, NotFound
from patchbay.execute.patch import Patcher
from patchbay.merge import Merged, Recipe, build, find_method, named, settled
from patchbay.merge.preview import warnings_of
from patchbay.merge.recipe import Scalar
from patchbay.merge.scale import COARSE, scaled, search_scale

MAX_GRID = 64  # combinations of parameters; each is built once and judged at seven scales
MOST_SCALES = len(COARSE) + 2
Grid = Mapping[str, Sequence[Scalar]]


@dataclass(frozen=True, slots=True)
class Trial:
    """`divergences` by term, nats; `divergence` is their mean."""

    params: Mapping[str, Scalar]
    scale: float
    divergence: float
    divergences: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tuned:
    """`recipe` is the one that was given, with the best trial's scale and parameters."""

    recipe: Recipe
    best: Trial
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        recipe = self.recipe.describe() or self.recipe.model_dump(mode="json")
        trials = [asdict(trial) for trial in self.trials]
        return {"recipe": recipe, "best": asdict(self.best), "trials": trials, "warnings": list(self.warnings)}


def tune(
    base: str | Path,
    recipe: Recipe,
    paths: Mapping[str, Path],
    calibrations: Mapping[str, Calibration],
    *,
    grid: Grid | None = None,
    on_progress: Progress | None = None,
) -> Tuned:
    """Tries scales from 1/8 to 2 for every combination of `grid`'s parameters.

    `paths` says for each of the recipe's terms the delta file or the model folder, `calibrations` its inputs. The
    recipe's own scale is not looked at. The model and all terms are held in memory. Raises NotFound for a term without
    a path, InvalidRecipe (inputs that are missing, a grid that is too large, parameters that the method does not have,
    a merge that is no number at any scale), and what `open_term` and `Judge` raise.
    """
    names = [term.delta for term in recipe.terms]
    _check(names, paths, calibrations)
    choices = _combinations(grid or {})
    for choice in choices:  # all of them before the first is built, which may take minutes
        named(_with(recipe, choice, 1.0))
    bench = _Bench.open(base, {name: paths[name] for name in names}, calibrations)
    trials: list[Trial] = []
    for choice in choices:
        report = _reporter(trials, len(choices), on_progress)
        bench.sweep(_with(recipe, choice, 1.0), choice, report)
    best = min(trials, key=lambda trial: trial.divergence)
    if not math.isfinite(best.divergence):
        raise InvalidRecipe("at no scale did the merged model answer with numbers", param="scale")
    method = find_method(recipe.method)
    return Tuned(
        _with(recipe, best.params, best.scale), best, tuple(trials), warnings_of(method, list(bench.deltas.values()))
    )


@dataclass(frozen=True)
class _Bench:
    """The resident model, the terms by name, and who judges a merge for each of them."""

    backbone: Backbone
    digests: Mapping[str, str]
    deltas: Mapping[str, Delta]  # by digest
    judges: Mapping[str, Judge]

    @classmethod
    def open(cls, base: str | Path, paths: Mapping[str, Path], calibrations: Mapping[str, Calibration]) -> _Bench:
        backbone, folder = Backbone.load(base, device="cpu"), BaseFolder.open(base)
        terms = [open_term(name, path, folder) for name, path in paths.items()]
        deltas = {term.name: _whole(term) for term in terms}
        judges = {name: Judge(backbone, delta, calibrations[name]) for name, delta in deltas.items()}
        digests = {term.name: term.digest for term in terms}
        return cls(backbone, digests, {digests[name]: delta for name, delta in deltas.items()}, judges)

    def sweep(self, recipe: Recipe, choice: Mapping[str, Scalar], found: Callable[[Trial], None]) -> None:
        """Builds the merge once and judges it at several scales."""
        canonical = settled(recipe, self.digests)
        terms = [self.deltas[digest] for digest, _ in canonical.terms]
        merged = build(canonical, terms, self.backbone)

        def loss(scale: float) -> float:
            with self._patched(merged, scale, terms):
                each = {name: judge.batch_divergence(range(judge.num_batches)) for name, judge in self.judges.items()}
            mean = sum(each.values()) / len(each)
            trial = Trial(choice, scale, mean if math.isfinite(mean) else math.inf, each)
            found(trial)
            return trial.divergence

        search_scale(loss)

    @contextmanager
    def _patched(self, merged: Merged, scale: float, terms: Sequence[Delta]) -> Iterator[None]:
        now = scaled(merged, scale)
        with Patcher(self.backbone).patched(now.plan, now.deltas(terms)):
            yield


def _check(names: Sequence[str], paths: Mapping[str, Path], calibrations: Mapping[str, Calibration]) -> None:
    for name in names:
        if name not in paths:
            raise NotFound(f"{name!r} stands for nothing: give --delta {name}=PATH", param="delta")
        if name not in calibrations:
            message = f"{name!r} has no calibration inputs: give --calibration {name}=FILE"
            raise InvalidRecipe(message, param="calibration")
    for name in calibrations:
        if name not in names:
            message = f"calibration inputs for {name!r}, which is none of the terms: {', '.join(names)}"
            raise InvalidRecipe(message, param="calibration")


def _combinations(grid: Grid) -> list[dict[str, Scalar]]:
    count = math.prod(len(values) for values in grid.values())
    if not 1 <= count <= MAX_GRID:
        raise InvalidRecipe(f"the grid has {count} combinations, and 1 to {MAX_GRID} are tried", param="grid")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _with(recipe: Recipe, params: Mapping[str, Scalar], scale: float) -> Recipe:
    return recipe.model_copy(update={"params": {**recipe.params, **params}, "scale": scale})


def _whole(term: Opened) -> Delta:
    """All of a term at once."""
    parts = [term.source.read(name) for name in sorted(term.source.names)]
    joined: dict[str, Any] = {
        field.name: {name: value for part in parts for name, value in getattr(part, field.name).items()}
        for field in fields(Delta)
        if field.name != "manifest"
    }
    beside = {"added": term.added, "appended": term.appended, "copied": term.source.copied}
    return replace(term.source.empty, **{**joined, **beside})


def _reporter(trials: list[Trial], choices: int, on_progress: Progress | None) -> Callable[[Trial], None]:
    def report(trial: Trial) -> None:
        trials.append(trial)
        if on_progress:
            best = min(other.divergence for other in trials)
            on_progress(len(trials), choices * MOST_SCALES, f"trial {len(trials)}, best divergence {best:.4g}")

    return report
