"""When a fine-tune is not worth keeping, and what is said of it."""

from __future__ import annotations

import pytest

from patchbay.training.doubts import of_epochs, of_scores
from patchbay.training.metrics import Metrics


def epochs(*losses: float) -> list[dict[str, float]]:
    return [{"epoch": number, "loss": loss} for number, loss in enumerate(losses, 1)]


def score(balanced_accuracy: float) -> Metrics:
    return Metrics(balanced_accuracy, 0.0, 0.0)


@pytest.mark.parametrize(
    ("losses", "kept", "accuracy", "num_classes", "said"),
    [
        ((1.0, 0.5), 2, 0.9, 2, []),
        ((1.0, 0.5), 0, 0.9, 2, ["no epoch was as good as the head alone"]),
        ((1.0, 0.5), 1, 0.5, 2, ["in validation it is no better than guessing"]),
        ((1.0, 0.5), 1, 0.26, 4, []),
        ((1.0, 0.5), 2, 0.0, 0, []),
        ((1.0, 7.5), 2, 0.0, 0, ["the loss rose from 1 to 7.5, and there is no validation part"]),
        ((1.0, 7.5), 2, 0.9, 2, []),
    ],
)
def test_epochs(losses: tuple[float, ...], kept: int, accuracy: float, num_classes: int, said: list[str]) -> None:
    found = of_epochs(epochs(*losses), kept, accuracy, num_classes)
    assert len(found) == len(said) and all(text.startswith(words) for text, words in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("alone", "tuned", "said"),
    [
        (0.8, 0.9, []),
        (0.8, 0.7, ["in the test part the head alone is better"]),
        (0.4, 0.5, ["in the test part it is no better than guessing"]),
        (0.5, None, ["in the test part it is no better than guessing"]),
        (0.6, None, []),
    ],
)
def test_scores(alone: float, tuned: float | None, said: list[str]) -> None:
    scores = {"majority": score(0.5), "band power + LDA": None, "head alone": score(alone)}
    found = of_scores(scores if tuned is None else {**scores, "fine-tuned": score(tuned)})
    assert len(found) == len(said) and all(text.startswith(words) for text, words in zip(found, said, strict=True))
