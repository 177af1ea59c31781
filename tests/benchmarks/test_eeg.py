"""Masks and spreads. What training gives is measured by the benchmark alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.eeg import _spread
from benchmarks.eeg_masks import _hidden, masks
from rich.console import Console
from tests.training.recordings import write_edf

from benchmarks import eeg_masks
from patchbay.models.neuript.steps import Steps


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
