"""How much slower one system is than another, and how sure that is. Knows nothing of what was run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST = 10  # rounds from which on a bound says something
RESAMPLES = 10_000


def slowdown(ratios: Sequence[float], certainty: float = 0.95) -> tuple[float, float]:
    """From ratios of times of the same round: their median less 1, and what that of a bootstrap of rounds stays below
    with `certainty`. The same every time.
    """
    found = np.asarray(ratios)
    drawn = np.random.default_rng(0).choice(found, (RESAMPLES, len(found)))
    return float(np.median(found)) - 1, float(np.quantile(np.median(drawn, axis=1), certainty)) - 1
