"""What is compared on recordings: labels, masks and spreads. What training gives is measured by the benchmark alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.eeg import TASKS, _parts, _spread
from benchmarks.eeg_masks import _hidden, masks
from rich.console import Console
from tests.training.recordings import write_edf, write_marked

from benchmarks import eeg_masks
from patchbay.models.neuript.steps import Steps

EYES, FISTS, _ = TASKS


def test_runs_are_classes_or_have_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.eeg.STEPS", Steps(window_seconds=2.0, rejects=False))
    for run in (1, 2):
        write_edf(tmp_path / f"S001R{run:02}.edf", seconds=20)
    for run in (3, 6):
        write_marked(tmp_path / f"S001R{run:02}.edf", [(4.0 * n, 4.0, f"T{n % 3}") for n in range(15)], seconds=60)
    eyes = _parts(EYES, tmp_path)
    assert {one.source.path.stem: set(one.labels) for one in eyes["test"]} == {
        "S001R01": {"open"},
        "S001R02": {"closed"},
    }
    assert min(start for one in eyes["test"] for start in one.source.windows.starts) >= 10 - 1, "the last half"
    fists = _parts(FISTS, tmp_path)
    assert [one.source.path.stem for one in fists["test"]] == ["S001R03"], "another task's runs are left out"
    assert {label for one in fists["train"] for label in one.labels} == {"left", "right"}


@pytest.mark.parametrize("kind", ["amplitudes", "any"])
def test_both_masks_hide_as_many_samples(kind: str) -> None:
    signal = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    hidden = _hidden(kind, signal, torch.Generator().manual_seed(1))
    assert hidden.sum(2).tolist() == [[32] * 3] * 2
    ordered = torch.gather(hidden, 2, signal.argsort(2)).int()
    runs = (ordered.diff(dim=2) != 0).sum(2)
    assert bool((runs <= 2).all()) == (kind == "amplitudes"), "neighbours in amplitude, or any"


def test_masks_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eeg_masks, "UPDATES", 1)
    write_edf(tmp_path / "x.edf", seconds=20, channels=2)
    steps, console = Steps(window_seconds=0.5, rejects=False), Console(quiet=True)
    found = masks(tmp_path, steps, tmp_path, console)
    assert set(found) == {"amplitudes", "any"} and all(one["of_zero"] > 0 for one in found.values())
    (tmp_path / "x.edf").unlink()
    assert masks(tmp_path, steps, tmp_path, console) == found == json.loads((tmp_path / "masks.json").read_text())


def test_spreads() -> None:
    assert _spread([0.5, 0.75, None]) == "0.625 (0.500..0.750)" and _spread([0.5]) == "0.500" and _spread([None]) == "-"
