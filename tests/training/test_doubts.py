"""When a fine-tune is not worth keeping, and what is said of it."""

from __future__ import annotations

import math

import pytest

from patchbay.training.doubts import of_epochs, of_reconstruction, of_scores, of_validation
from patchbay.training.metrics import Metrics


def epochs(*losses: float) -> list[dict[str, float]]:
    return [{"epoch": number, "loss": loss} for number, loss in enumerate(losses, 1)]


def score(balanced_accuracy: float) -> Metrics:
    return Metrics(balanced_accuracy, 0.0, 0.0)


@pytest.mark.parametrize(
    ("losses", "kept", "accuracy", "num_classes", "said"),
    [
        ((1.0, 0.5), 2, 0.9, 2, []),
        ((1.0, 0.5), 0, 0.9, 2, ["no epoch was better than the head alone"]),
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


@pytest.mark.parametrize(
    ("judged", "zero", "is_said"), [(0.1, 0.2, False), (0.2, 0.2, True), (0.3, 0.2, True), (math.nan, math.nan, False)]
)
def test_reconstruction(judged: float, zero: float, is_said: bool) -> None:
    found = of_reconstruction(judged, zero)
    assert len(found) == is_said and all(f"an error of {judged:g}, and zeros with {zero:g}:" in text for text in found)


def test_a_validation_part_that_lacks_classes() -> None:
    (said,) = of_validation(("left", "rest", "right"), {"rest"})
    assert said.startswith("no window of the validation part is of the class 'left', 'right': epochs are compared by")
    assert not of_validation(("left", "right"), {"right", "left"}) and not of_validation(("left", "right"), ())
