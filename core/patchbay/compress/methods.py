"""The table of compression methods: a name and a class with `tune`, `pruner` and `params`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from patchbay.compress.baselines import BitDelta, Lossless, LowRank, Magnitude, Random, ScaledMagnitude
from patchbay.compress.nps import TopkNps
from patchbay.compress.options import Options
from patchbay.compress.parts import Distils, Pruner
from patchbay.compress.problem import Problem
from patchbay.compress.sampled_nps import SampledNps


class Method(Protocol):
    """`tune` searches what the method has to find, at one density; `pruner` prunes to any density with what was found.

    `choose` comes before it where a size is asked for, and settles at one density what changes the size. `params` goes
    into the manifest. `distils` says what `distil` may tune afterwards.
    """

    distils: Distils
    options: Options

    def choose(self, density: float) -> None: ...

    def tune(self, density: float) -> None: ...

    def pruner(self, density: float) -> Pruner: ...

    @property
    def params(self) -> Mapping[str, int | float | str | bool]: ...


_CLASSES: Mapping[str, Callable[[Problem, Options], Method]] = {
    "magnitude": Magnitude,
    "scaled_magnitude": ScaledMagnitude,
    "random": Random,
    "bitdelta": BitDelta,
    "low_rank": LowRank,
    "lossless": Lossless,
}


def find_method(problem: Problem, options: Options) -> Method:
    if options.method == "nps":
        return SampledNps(problem, options) if options.support == "sampled" else TopkNps(problem, options)
    return _CLASSES[options.method](problem, options)
