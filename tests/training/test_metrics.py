from __future__ import annotations

import numpy as np
import pytest

from patchbay.training.metrics import confusion, majority, metrics

CLASSES = np.array([0, 0, 0, 1, 1, 2])


def sure(answers: list[int], count: int) -> np.ndarray:
    return np.eye(count)[answers]


def test_by_hand() -> None:
    found = metrics(sure([0, 0, 1, 1, 1, 0], 3), CLASSES)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 + 0) / 3)
    expected, seen = (3 * 3 + 2 * 3 + 1 * 0) / 36, 4 / 6
    assert found.kappa == pytest.approx((seen - expected) / (1 - expected))
    assert found.weighted_f1 == pytest.approx((3 * (4 / 6) + 2 * (4 / 5) + 0) / 6)
    assert found.auroc is None and found.auc_pr is None


def test_two_classes_have_curves() -> None:
    second = np.array([0.1, 0.4, 0.35, 0.8])
    found = metrics(np.stack((1 - second, second), 1), np.array([0, 0, 1, 1]))
    assert found.auroc == pytest.approx(0.75) and found.auc_pr == pytest.approx((1 + 2 / 3) / 2)


def test_the_majority_of_training() -> None:
    answers = majority(np.array([2, 1, 1]), 3, 4)
    assert answers.tolist() == sure([1] * 4, 3).tolist()


def test_rows_are_classes_and_columns_answers() -> None:
    assert confusion(sure([0, 0, 1, 1, 1, 0], 3), CLASSES) == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
