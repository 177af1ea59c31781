"""The density that meets a bound on the file's size, or on the divergence from the full fine-tune."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from patchbay.compress.budget import density_of, entropy
from patchbay.compress.distil import Distilled
from patchbay.compress.methods import Method
from patchbay.compress.options import ONE_SIZE
from patchbay.compress.parts import DensePart, Progress
from patchbay.compress.problem import Problem
from patchbay.compress.write import Writer, as_stored, unpublished, whole_part
from patchbay.delta import DeltaFile
from patchbay.errors import InvalidRecipe

CLOSE = 0.985  # of the size asked for: near enough to stop
STILL_CLOSE = 0.96  # after a search, whose draw is for one density
SHARES = (1.0, 0.98, 0.95, 0.9)  # of the density that fits without distillation
NAMES = 96  # bytes left for the names of the base and the fine-tune, or what longer ones take
TRIES = 14
MOST_AT_ONCE = 10.0  # in logarithms of density: further apart than any two that could matter
KL_STEPS = 8
SMALLEST_DENSITY = 1e-4


def fit_size(
    writer: Writer,
    method: Method,
    numel: int,
    out: Path,
    target: int,
    distilled: Callable[[float], Distilled] = lambda density: Distilled(),
) -> DeltaFile:
    """Writes the densest delta found that has at most `target` bytes, usually within 1.5 % of it.

    The method is tuned at the density that fits before it is tuned, and written at that one if the file still fits:
    what a search found is a draw at one density, and at another the draw is another. What changes the size itself is
    chosen first, and the density fitted again. `distilled` is asked at the end.
    Sizes are taken with names that are always the same, and a little left for the real ones: what a model is called
    does not change what is kept of it.
    Raises InvalidRecipe where even an empty delta (heads, norms, biases) is larger, or a method's only size is.
    """
    unnamed = replace(writer, named=False)
    with unpublished(out) as attempt:
        fixed = unnamed.write(method, 0.0, attempt).num_bytes
        if fixed > target:
            raise _too_few(target, writer.write(method, 0.0, attempt))
        room = max(fixed, target - max(NAMES, writer.bytes_of_names))

        def size_of(density: float) -> int:
            return unnamed.write(method, density, attempt).num_bytes

        one_size = writer.options.method in ONE_SIZE
        fit = partial(_fitting, size_of, numel, fixed, room)
        start = min(0.5, density_of(8 * (room - fixed) / max(1, numel)))
        density = 1.0 if one_size else fit(start, CLOSE)
        method.choose(density)
        density = density if one_size else fit(density, CLOSE)
        method.tune(density)
        density = density if one_size else fit(density, STILL_CLOSE)
        for share in SHARES:
            # Tuned norms may compress a little worse than the fine-tune's own.
            found = share * density, distilled(share * density)
            if unnamed.write(method, found[0], attempt, found[1]).num_bytes <= room:
                break
        else:
            found = density, Distilled()
        file = writer.write(method, found[0], attempt, found[1])
        if file.num_bytes > target:
            raise _too_few(target, file)
        attempt.replace(out)
    return DeltaFile.open(out)


def _fitting(size_of: Callable[[float], int], numel: int, fixed: int, target: int, start: float, close: float) -> float:
    """The largest density tried, from `start` on, whose file has at most `target` bytes; 0 where none had. It ends with
    a file of `close` of them.
    """
    low, high = (0.0, fixed), (1.0, math.inf)  # (density, bytes): fits, does not fit
    aim = max(1.0, target * (1 + CLOSE) / 2 - fixed)
    density = start
    tries: list[tuple[float, float]] = []
    for _ in range(TRIES):
        size = size_of(density)
        low, high = ((density, size), high) if size <= target else (low, (density, size))
        if low[0] >= 1.0 or low[1] >= close * target:
            break
        tries.append((density, size - fixed))
        density = (
            _secant(tries[-2], tries[-1], aim) if len(tries) > 1 else _extrapolated(density, size - fixed, aim, numel)
        )
        if not low[0] < density < high[0]:
            density = (low[0] + high[0]) / 2 if high[1] < math.inf else min(1.0, 2 * low[0])
    return low[0]


def _extrapolated(density: float, size: float, aim: float, numel: int) -> float:
    """Where a density d costs H(d) + b d bits an entry, b as this one has it; in proportion, where positions cost less.

    `size` and `aim`: bytes.
    """
    bits = 8 / max(1, numel)
    value_bits = (bits * size - entropy(density)) / density if density else 1.0
    if value_bits < 0:
        return density * aim / max(1.0, size)
    return density_of(bits * aim, value_bits)


def _secant(before: tuple[float, float], last: tuple[float, float], aim: float) -> float:
    """On the line through two (density, bytes) in logarithms; 0 where there is none."""
    if not (before[0] > 0 and last[0] > 0 and before[1] > 0 and last[1] > 0) or before[1] == last[1]:
        return 0.0
    exponent = math.log(aim / before[1]) / math.log(last[1] / before[1]) * math.log(last[0] / before[0])
    return before[0] * math.exp(exponent) if abs(exponent) < MOST_AT_ONCE else 0.0


def fit_kl(problem: Problem, method: Method, target: float, on_progress: Progress | None = None) -> float:
    """The smallest density found whose divergence on the calibration inputs is <= `target`, measured on values as they
    are stored. The method is tuned at the density that reaches it untuned, which is then too large.

    Raises InvalidRecipe without calibration inputs, and where density 1 does not reach it.
    """
    judge = problem.judge
    if judge is None:
        raise InvalidRecipe("target_kl is measured on calibration inputs: give some", param="target_kl")
    whole = {name: as_stored(name, whole_part(tau, method.options)) for name, tau in problem.whole.items()}
    stored = replace(problem, whole=whole)

    def reaches(density: float) -> bool:
        parts = problem.prune(method.pruner(density))
        dense = {name: DensePart(as_stored(name, part), "fp32") for name, part in parts.items()}
        return judge.divergence(stored.candidate(dense)) <= target

    if not reaches(1.0):
        raise InvalidRecipe(f"a divergence of {target} is not reached at density 1 either", param="target_kl")
    density = _smallest(reaches, SMALLEST_DENSITY, 1.0, on_progress)
    untuned = dict(vars(method))
    method.tune(density)
    if not problem.record.evaluations:
        return density
    if reaches(density):
        return _smallest(reaches, density / 16, density, on_progress)
    # What was tuned to another score, or on values before they were rounded, may reach the bound at no density.
    vars(method).update(untuned)
    return density


def _smallest(reaches: Callable[[float], bool], low: float, high: float, on_progress: Progress | None) -> float:
    """Between `low`, which is taken not to reach, and `high`, which does: within a factor of (high / low)^(1 / 256)."""
    for step in range(KL_STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if reaches(middle) else (middle, high)
        if on_progress:
            on_progress(step + 1, KL_STEPS, f"density {high:.4g} reaches the divergence")
    return high


def _too_few(target: int, least: DeltaFile) -> InvalidRecipe:
    """`least`: the smallest file that the method has."""
    message, statistics = f"{target} bytes are too few: the smallest file takes {least.num_bytes}", _statistics(least)
    if least.num_bytes - statistics <= target:
        message += f"; without the statistics for merging, {least.num_bytes - statistics}"
    elif least.manifest.compression.method in ONE_SIZE:
        message += f": {least.manifest.compression.method} has one size, other methods can be smaller"
    return InvalidRecipe(message, param="target_size")


def _statistics(file: DeltaFile) -> int:
    return dict(file.itemised()).get("statistics", 0)
