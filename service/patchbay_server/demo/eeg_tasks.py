"""What one subject's recordings are asked about: eyes open or closed, and which limb moves or is thought of.

Runs are numbered as in PhysioNet's EEG Motor Movement/Imagery data (Schalk et al. 2004, Goldberger et al. 2000).
Windows of the last half of a recording are tested, and nothing is trained on it. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from patchbay.errors import InputError
from patchbay.models.neuript.steps import Steps
from patchbay.training.examples import Parts, Split, examples, split
from patchbay.training.files import Opened, files_in
from patchbay.training.labels import Marks, Rule, Span, by_annotations

CHANNELS = ("F3", "F4", "C3", "Cz", "C4", "Pz", "O1", "O2")
STEPS = Steps(window_seconds=2.0, reference="average", channels=CHANNELS, rejects=False)
OVERLAPPING = replace(STEPS, stride_seconds=1.0)  # of windows that have a class
PARTS = Split(validation=0.15, test=0.5)


@dataclass(frozen=True, slots=True)
class Task:
    """`classes`: of a run's number, or of an annotation's text in the runs that are listed."""

    name: str
    runs: tuple[int, ...]
    classes: Mapping[str, str]

    def parts(self, folder: Path, steps: Steps = OVERLAPPING) -> Parts:
        """Windows of the folder's recordings. Raises InputError where it has none of these runs."""
        return split(examples(files_in(folder), self._rule(folder), steps), PARTS)

    def _rule(self, folder: Path) -> Rule:
        annotated = by_annotations(folder, self.classes)

        def marks(path: Path, opened: Opened) -> Marks | None:
            run = _run_of(path)
            if run not in self.runs:
                return None
            if f"{run:02}" in self.classes:
                return Marks(path.stem, (Span(0.0, None, self.classes[f"{run:02}"]),))
            return annotated(path, opened)

        return marks


TASKS = (
    Task("eyes", (1, 2), {"01": "open", "02": "closed"}),
    Task("fists", (3, 7, 11), {"T1": "left", "T2": "right"}),
    Task("imagined", (6, 10, 14), {"T1": "fists", "T2": "feet"}),
)


def check_runs(folder: Path, tasks: Sequence[Task] = TASKS) -> None:
    """Raises InputError with the recordings that the tasks need and the folder lacks."""
    found = files_in(folder)
    there = {_run_of(path) for path in found}
    lacking = sorted(run for task in tasks for run in task.runs if run not in there)
    if lacking:
        subject = next((path.stem.rpartition("R")[0] for path in found if _run_of(path) is not None), "S001")
        names = ", ".join(f"{subject}R{run:02}.edf" for run in lacking)
        raise InputError(f"{folder} lacks {names}: the demo is about one subject's runs", param="data")


def _run_of(path: Path) -> int | None:
    """Of `S001R03.edf`: 3."""
    run = path.stem.rpartition("R")[2]
    return int(run) if run.isascii() and run.isdigit() and path.stem != run else None
