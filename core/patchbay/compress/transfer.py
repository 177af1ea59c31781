"""Transfer, the first use of a pruned task vector (Eq. 6 of NPS, arXiv 2505.18713): theta_base + lambda * delta.

A sweep over lambda measures what the target task gains and what the base could do and cannot do any more. Knows nothing
of plots, and never edits a delta: lambda is the weight of a recipe, as it is when the delta is served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.parts import Progress
from patchbay.delta import Delta, read_delta
from patchbay.errors import InvalidRecipe, NonFiniteValue
from patchbay.merge import CanonicalRecipe, build_plan
from patchbay.merge.recipe import MAX_WEIGHT

Measure = Literal["accuracy", "negative_kl", "negative_squared_error", "cosine_similarity"]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """`target` and `retained` at one lambda, higher is better; NaN where the weights drive the outputs out of range."""

    scale: float
    target: float
    retained: float


@dataclass(frozen=True, slots=True)
class Curve:
    """`best` has the highest harmonic mean of both measures; None unless both are rates, which lie in [0, 1]."""

    points: tuple[CurvePoint, ...]
    target_measure: Measure
    retained_measure: Measure
    best: CurvePoint | None


def transfer(
    base: str | Path,
    delta_file: Path,
    scales: Sequence[float],
    *,
    calibration: Calibration | Path,
    retained: Calibration | Path | None = None,
    on_progress: Progress | None = None,
) -> Curve:
    """The curve of base + lambda * delta over `scales`, in their order.

    Without labels, target = -KL(delta at 1 || delta at lambda) on the `calibration` inputs, and retained =
    -KL(base || delta at lambda) on the `retained` inputs, else on the same; where there is no head, both are the mean
    cosine similarity of embeddings. With labels each is accuracy: of the delta's head, and of the base's own.
    Raises InvalidRecipe for scales beyond a recipe's weights; DeltaError; InputError for inputs or labels that do not
    suit the model; UnsupportedTask for labels without a head.
    """
    _check(scales)
    target_inputs = Calibration.of(calibration)
    retained_inputs = replace(target_inputs, labels=None) if retained is None else Calibration.of(retained)
    backbone = Backbone.load(base, device="cpu")
    delta = read_delta(delta_file, backbone.specs, backbone.fingerprint, read_base=backbone.stored)
    target = _Sweep(backbone, delta, target_inputs, reference=1.0)
    kept = _Sweep(backbone, _without_novelties(delta), retained_inputs, reference=0.0)
    points = []
    for done, scale in enumerate(scales):
        if on_progress:
            on_progress(done, len(scales), f"scale {scale:g}")
        points.append(CurvePoint(scale, target.at(scale), kept.at(scale)))
    return Curve(tuple(points), target.measure, kept.measure, _best(points, {target.measure, kept.measure}))


class _Sweep(Judge):
    """A judge that patches its one delta at any scale; its reference is the delta at the scale `reference`."""

    def __init__(self, backbone: Backbone, delta: Delta, calibration: Calibration, *, reference: float) -> None:
        self._scale = reference
        super().__init__(backbone, delta, calibration, "kl" if calibration.labels is None else "accuracy")

    def at(self, scale: float) -> float:
        self._scale = scale
        try:
            score = self.score(self.full)
        except NonFiniteValue:
            return math.nan
        # |e - e'|^2 = 2 - 2 cos for unit vectors.
        return 1 + score / 2 if self.measure == "cosine_similarity" else score

    @property
    def measure(self) -> Measure:
        if self.score_name == "accuracy":
            return "accuracy"
        if not self.compares_values:
            return "negative_kl"
        return "cosine_similarity" if self._head is None else "negative_squared_error"

    @contextmanager
    def patched(self, delta: Delta) -> Iterator[None]:
        recipe = CanonicalRecipe("task_arithmetic", (("delta", self._scale),), 1.0, (), None)
        with self._patcher.patched(build_plan(recipe, [delta]), [delta]):
            yield


def _without_novelties(delta: Delta) -> Delta:
    """What the delta does to the base itself: no head and no tokens of its own."""
    return replace(delta, added={}, appended={}, manifest=delta.manifest.model_copy(update={"tokens": ()}))


def _check(scales: Sequence[float]) -> None:
    if not scales:
        raise InvalidRecipe("there are no scales: give at least one", param="scales")
    for scale in scales:
        if not abs(scale) <= MAX_WEIGHT:
            raise InvalidRecipe(f"scale {scale:g} is not between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}", param="scales")


def _best(points: Sequence[CurvePoint], measures: set[Measure]) -> CurvePoint | None:
    rates = [point for point in points if 0 <= point.target <= 1 and 0 <= point.retained <= 1]
    return (
        None if any(name.startswith("negative") for name in measures) else max(rates, key=_harmonic_mean, default=None)
    )


def _harmonic_mean(point: CurvePoint) -> float:
    total = point.target + point.retained
    return 2 * point.target * point.retained / total if total else 0.0
