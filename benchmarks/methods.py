"""The compression methods that are compared, as a table: a new method is a new row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.families.base import Case
from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Report, compress
from patchbay.compress.options import Options
from patchbay.errors import InvalidRecipe


@dataclass(frozen=True, slots=True)
class Method:
    """`options(size, seed)`: what the library is asked for. A method that draws is measured with several seeds."""

    options: Callable[[int, int], Options]
    is_random: bool = False


METHODS: Mapping[str, Method] = {
    "magnitude": Method(lambda size, seed: Options("magnitude", target_size=size)),
    "magnitude-scaled": Method(lambda size, seed: Options("scaled_magnitude", target_size=size)),
    "dare": Method(lambda size, seed: Options("random", target_size=size, seed=seed), is_random=True),
    "bitdelta": Method(lambda size, seed: Options("bitdelta", target_size=size)),
    "low-rank": Method(lambda size, seed: Options("low_rank", target_size=size)),
    "nps-topk": Method(lambda size, seed: Options("nps", target_size=size, support="topk")),
    "nps-sampled": Method(
        lambda size, seed: Options("nps", target_size=size, support="sampled", seed=seed), is_random=True
    ),
    # Of one size, which is what is asked of it: no target, so that a file that is too large is measured too.
    "lossless": Method(lambda size, seed: Options("lossless")),
}


@dataclass(frozen=True, slots=True)
class Effort:
    """What a search may cost: its evaluations, and how many of the family's calibration inputs each looks at."""

    evaluations: int = 40
    inputs: int | None = None

    def limit(self, options: Options) -> Options:
        return replace(options, evaluations=self.evaluations)

    def read(self, calibration: Path) -> Calibration:
        given = Calibration.read(calibration)
        return replace(given, inputs=given.inputs[: self.inputs])


FULL_EFFORT = Effort()


class CannotReach(Exception):
    """The smallest file that the method gives is larger than asked for; `num_bytes` where the method has one size."""

    def __init__(self, message: str, num_bytes: int | None = None) -> None:
        super().__init__(message)
        self.num_bytes = num_bytes


def compress_to(target: int, method: Method, case: Case, out: Path, seed: int, effort: Effort = FULL_EFFORT) -> Report:
    """Writes a file of at most `target` bytes, the largest that the method gives. Raises CannotReach."""
    options, inputs = effort.limit(method.options(target, seed)), effort.read(case.calibration)
    try:
        report = compress(case.base, case.finetuned, out, options, calibration=inputs)
    except InvalidRecipe as error:
        if error.param != "target_size":
            raise
        raise CannotReach(error.message) from error
    if report.num_bytes > target:
        raise CannotReach(f"{target} bytes are too few: the file takes {report.num_bytes}", report.num_bytes)
    return report
