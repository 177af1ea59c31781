"""Too few windows, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.training.recordings import signal, write_edf

from patchbay.errors import InputError
from patchbay.models.neuript.steps import Steps
from patchbay.training.shortage import check_enough
from patchbay.training.windows import sources, split

STEPS = Steps(window_seconds=2.0)


def write_loud(file: Path) -> Path:
    """Two channels, of which the second is over 100 microvolts in every window."""
    rows = signal(20, 100, 2, 0) * [[0.3], [12]]
    np.savez(file, signal=rows, rate=100, names=np.array(["Fp1", "O2"]), unit="uV")
    return file


def test_all_were_rejected(tmp_path: Path) -> None:
    found = sources([write_loud(tmp_path / "x.npz")], STEPS)
    message = (
        r"0 windows are fewer than a batch of 16: windows cut: x\.npz 10; 10 were rejected \(10 over 100 uV, most "
        r"often by O2\), which --no-reject keeps\. Give more"
    )
    with pytest.raises(InputError, match=message):
        check_enough(found, found, 16)


def test_few_are_there(tmp_path: Path) -> None:
    paths = [write_edf(tmp_path / f"{number}.edf", seconds=8) for number in range(7)]
    found = sources(paths, Steps(window_seconds=2.0, rejects=False))
    train, _ = split(found, 0.25)
    check_enough(found, train, 21)
    with pytest.raises(InputError) as caught:
        check_enough(found, train, 22)
    message = caught.value.message
    assert "21 windows are fewer than a batch of 22: windows cut: 0.edf 4, 1.edf 4" in message
    assert "4.edf 4 and 2 recordings more; 7 are held out." in message and "rejected" not in message


def test_recordings_that_are_too_short(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    found = sources([write_edf(tmp_path / "x.edf", seconds=1)], STEPS, on_left_out=lambda *one: told.append(one))
    assert [(path.name, why) for path, why in told] == [("x.edf", "its 1 s are shorter than a window of 2")]
    with pytest.raises(InputError, match="0 windows are .*no recording is as long as a window"):
        check_enough(found, found, 1)
