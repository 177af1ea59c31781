"""What speaks against a model that has been trained: that it fell apart, or that what is simpler reaches as much.

Knows nothing of how it was made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from patchbay.training.metrics import Metrics

GUESSING = "guessing the most frequent class"


def of_reconstruction(judged: float, zero: float) -> list[str]:
    """Sentences on a pre-training: its error in held-out windows, and that of guessing zeros; NaN where none are."""
    if not judged >= zero:
        return []
    return [
        f"hidden samples of held-out windows are guessed with an error of {judged:.3g}, and zeros with {zero:.3g}: the "
        "model has not learnt what they look like; take more recordings, or more --epochs"
    ]


def of_validation(classes: Sequence[str], there: Collection[str]) -> list[str]:
    """Sentences on classes that none of a validation part's windows is of. Without any window there is no such part."""
    lacking = [name for name in classes if name not in there]
    if not (there and lacking):
        return []
    return [
        f"no window of the validation part is of the class {', '.join(map(repr, lacking))}: epochs are compared by the "
        "other classes alone; give --validation a larger share, or split otherwise"
    ]


def of_epochs(history: Sequence[Mapping[str, Any]], kept: int, score: float, num_classes: int) -> list[str]:
    """Sentences on the epoch `kept`, from 1; 0 is the head alone. `score`: its balanced accuracy in validation, which
    has windows of so many classes; of none where nothing is there.
    """
    found, losses = list[str](), [line["loss"] for line in history]
    if not kept:
        found.append("no epoch was better than the head alone: that is kept, on the base's own encoder")
    elif not num_classes and losses[kept - 1] > losses[0]:
        found.append(
            f"the loss rose from {losses[0]:.3g} to {losses[kept - 1]:.3g}, and there is no validation part to choose "
            "an epoch by: take a lower --rate, or give --validation a share"
        )
    if num_classes and score <= 1 / num_classes:
        found.append(f"in validation it is no better than {GUESSING}")
    return found


def of_scores(scores: Mapping[str, Metrics | None]) -> list[str]:
    """Sentences on the last of them, in the test part."""
    last, most, alone = list(scores.values())[-1], scores["majority"], scores["head alone"]
    assert last is not None and most is not None and alone is not None
    found = []
    if last.balanced_accuracy <= most.balanced_accuracy:
        found.append(f"in the test part it is no better than {GUESSING}")
    if last.balanced_accuracy < alone.balanced_accuracy:
        found.append("in the test part the head alone is better, which is what --frozen keeps")
    return found
