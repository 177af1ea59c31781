from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.recordings import write_edf, write_npz

from patchbay.errors import InputError
from patchbay.models.neuript.steps import Steps
from patchbay.training.windows import Batches, sources, split

STEPS = Steps(window_seconds=2.0)


def test_windows_and_who_is_told(tmp_path: Path) -> None:
    paths = [write_edf(tmp_path / "x.edf"), write_npz(tmp_path / "y.npz", seconds=1.5), write_npz(tmp_path / "z.npz")]
    told: list[tuple[str, int, int]] = []
    found = sources(paths, STEPS, lambda path, number, of: told.append((path.name, number, of)))
    assert told == [("x.edf", 0, 3), ("y.npz", 1, 3), ("z.npz", 2, 3)]
    assert [source.path.name for source in found] == ["x.edf", "z.npz"], "one is shorter than a window"
    for source in found:
        assert len(source.windows.signal) + len(source.windows.rejected) == 20


def test_the_end_of_each_recording_is_held_out(tmp_path: Path) -> None:
    found = sources([write_edf(tmp_path / "x.edf"), write_npz(tmp_path / "z.npz")], Steps(2.0, rejects=False))
    first, second = split(found, 0.25)
    for whole, early, late in zip(found, first, second, strict=True):
        assert (len(early.windows.starts), len(late.windows.starts)) == (15, 5)
        assert early.windows.starts + late.windows.starts == whole.windows.starts
        assert torch.equal(torch.cat((early.windows.signal, late.windows.signal)), whole.windows.signal)
    assert split(found, 0.0)[1] == []


def test_fewer_channels_are_padded(tmp_path: Path) -> None:
    found = sources([write_edf(tmp_path / "x.edf"), write_npz(tmp_path / "z.npz")], Steps(2.0, rejects=False))
    batches = Batches(found)
    assert len(batches) == 40
    mixed = batches.of([0, 39])
    assert mixed["signal"].shape == (2, 6, 128) and mixed["lobes"].shape == (2, 6, 5)
    assert mixed["channel_mask"].tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert not bool(mixed["signal"][1, 4:].any()) and torch.equal(mixed["signal"][1, :4], found[1].windows.signal[19])
    assert "channel_mask" not in batches.of([0, 1])


def test_an_epoch_has_every_window_once(tmp_path: Path) -> None:
    batches = Batches(sources([write_edf(tmp_path / "x.edf")], Steps(2.0, rejects=False)))
    drawn = list(batches.epoch(6, 1))
    assert [len(batch) for batch in drawn] == [6, 6, 6]
    assert len({number for batch in drawn for number in batch}) == 18
    assert drawn == list(batches.epoch(6, 1)) != list(batches.epoch(6, 2))


def test_a_recording_that_is_refused_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", signal=np.full((1, 900), np.nan), rate=100, names=np.array(["C3"]), unit="uV")
    with pytest.raises(InputError, match=r"x\.npz: channel 'C3' has NaN"):
        sources([tmp_path / "x.npz"], STEPS)


def test_a_channel_that_was_asked_for_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.edf: it has no channel 'Foo'"):
        sources([write_edf(tmp_path / "x.edf")], Steps(2.0, channels=("O1", "Foo")))
