from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.recordings import write_edf, write_marked

from patchbay.errors import InputError
from patchbay.models.neuript.steps import Steps
from patchbay_server.demo.eeg_tasks import TASKS, check_runs

EYES, FISTS, _ = TASKS
STEPS = Steps(window_seconds=2.0, rejects=False)


def test_runs_are_classes_or_have_annotations(tmp_path: Path) -> None:
    for run in (1, 2):
        write_edf(tmp_path / f"S001R{run:02}.edf", seconds=20)
    for run in (3, 6):
        write_marked(tmp_path / f"S001R{run:02}.edf", [(4.0 * n, 4.0, f"T{n % 3}") for n in range(15)], seconds=60)
    eyes = EYES.parts(tmp_path, STEPS)
    labels = {one.source.path.stem: set(one.labels) for one in eyes["test"]}
    assert labels == {"S001R01": {"open"}, "S001R02": {"closed"}}
    assert min(start for one in eyes["test"] for start in one.source.windows.starts) >= 10, "the last half"
    fists = FISTS.parts(tmp_path, STEPS)
    assert [one.source.path.stem for one in fists["test"]] == ["S001R03"], "another task's runs are left out"
    assert {label for one in fists["train"] for label in one.labels} == {"left", "right"}


def test_runs_that_are_not_there_are_named(tmp_path: Path) -> None:
    for run in (1, 2, 3, 4, 7, 11):
        (tmp_path / f"S007R{run:02}.edf").write_bytes(b"")
    (tmp_path / "notes.edf").write_bytes(b"")
    with pytest.raises(InputError, match=r"lacks S007R06\.edf, S007R10\.edf, S007R14\.edf") as caught:
        check_runs(tmp_path)
    assert caught.value.param == "data"
    check_runs(tmp_path, TASKS[:2])
