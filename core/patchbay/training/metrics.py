"""How well predictions fit classes. Knows nothing of models and of signals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]  # [windows, classes]
Classes = npt.NDArray[np.int64]  # [windows]


@dataclass(frozen=True, slots=True)
class Metrics:
    """`kappa` is Cohen's; `auroc` and `auc_pr` are of the second of two classes, None where there are more."""

    balanced_accuracy: float
    kappa: float
    weighted_f1: float
    auroc: float | None = None
    auc_pr: float | None = None


def metrics(probabilities: Probabilities, classes: Classes) -> Metrics:
    """As scikit-learn has them."""
    from sklearn import metrics as known  # type: ignore[import-untyped]  # noqa: PLC0415  of an extra

    found = probabilities.argmax(1)
    curves: tuple[float | None, float | None] = (None, None)
    if probabilities.shape[1] == 2:
        second = probabilities[:, 1]
        curves = (float(known.roc_auc_score(classes, second)), float(known.average_precision_score(classes, second)))
    return Metrics(
        float(known.balanced_accuracy_score(classes, found)),
        float(known.cohen_kappa_score(classes, found)),
        float(known.f1_score(classes, found, average="weighted")),
        *curves,
    )


def balanced_accuracy(probabilities: Probabilities, classes: Classes) -> float:
    """The mean over the classes that are there of how many of its windows are right."""
    hits = probabilities.argmax(1) == classes
    return float(np.mean([hits[classes == name].mean() for name in np.unique(classes)]))


def confusion(probabilities: Probabilities, classes: Classes) -> list[list[int]]:
    """[class, answer]: how many windows."""
    count = probabilities.shape[1]
    table = np.zeros((count, count), int)
    np.add.at(table, (classes, probabilities.argmax(1)), 1)
    found: list[list[int]] = table.tolist()
    return found


def majority(train: Classes, count: int, rows: int) -> Probabilities:
    """What guessing the most frequent class of training gives."""
    best = np.bincount(train, minlength=count).argmax()
    return np.eye(count)[[int(best)] * rows]
