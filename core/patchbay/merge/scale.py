"""The one number that all merging methods share, the recipe's `scale`: a merge at another one, and a search for it.

Knows nothing of models and of how a merge is judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from patchbay.merge.merged import Merged

LEAST, MOST = 0.1, 2.0
COARSE = (0.125, 0.25, 0.5, 1.0, 2.0)
FINE = 2**0.5  # then the best of these times and over this


def scaled(merged: Merged, scale: float) -> Merged:
    """The merge of a recipe whose `scale` is `scale`, of one whose scale is 1, without building it again."""
    matrices = {name: plan.times(scale) for name, plan in merged.plan.matrices.items()}
    vectors = {name: scale * vector for name, vector in merged.plan.vectors.items()}
    exact = merged.plan.exact and scale == 1
    return replace(merged, plan=replace(merged.plan, matrices=matrices, vectors=vectors, exact=exact))


def search_scale(loss: Callable[[float], float]) -> dict[float, float]:
    """The loss at every scale that was tried: COARSE, then beside the best one, within LEAST and MOST."""
    tried = {scale: loss(scale) for scale in COARSE}
    best = min(tried, key=lambda scale: tried[scale])
    beside = [scale for scale in (best / FINE, best * FINE) if LEAST <= scale <= MOST]
    return tried | {scale: loss(scale) for scale in beside}
