"""A kind of job that really searches: it climbs a quadratic at random and goes on from what earlier attempts found."""

from __future__ import annotations

import random
from collections.abc import Sequence

from patchbay_server.jobs.base import Json
from patchbay_server.jobs.run import Run

CENTRE = (0.3, 0.7, 0.1)


def score(point: Sequence[float], work: int) -> float:
    """`work` repetitions only take time, so that a kill can fall into an evaluation."""
    total = 0.0
    for _ in range(max(1, work)):
        total = -sum((x - c) ** 2 for x, c in zip(point, CENTRE, strict=True))
    return total


def search(run: Run) -> Json:
    """The best point after `budget` evaluations. Replays the history: the same draws, the recorded scores."""
    spec, known = run.job.spec, run.history
    source = random.Random(spec["seed"])
    best, best_score, step = (0.0, 0.0, 0.0), float("-inf"), 0.3
    run.expect(spec["budget"])
    for number in range(spec["budget"]):
        point = tuple(x + source.gauss(0, step) for x in best)
        if number < len(known):
            assert tuple(known[number]["point"]) == point
            found = known[number]["score"]
        else:
            run.on_progress(number, spec["budget"], "search")
            found = score(point, spec["work"])
            run.on_evaluation(point, found)
        if found > best_score:
            best, best_score, step = point, found, step * 1.3
        else:
            step *= 0.9
    return {"best": list(best), "score": best_score}
