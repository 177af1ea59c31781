"""A demo's folder, and what is shown while it runs. Knows nothing of what runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from patchbay.errors import InputError

MARKER = ".patchbay-demo"
LINE_EVERY_S = 15.0
Step = Callable[[int, int, str], None]


def open_console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    # A log has no width of its own, and 80 cuts the tables.
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def prepare(folder: Path) -> None:
    """New and empty. Raises InputError for a folder that is neither empty nor from an earlier demo."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise InputError(
            f"{folder} is not empty and not from an earlier demo: choose another with --folder", param="folder"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def progress(console: Console) -> Progress:
    """Bars, on terminals only: `step_of` writes lines elsewhere."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def step_of(bar: Progress, title: str) -> Iterator[Step]:
    """One line of the progress display; full and without a note when its body ends. Of a log, lines: when it begins,
    where it is every quarter of a minute, and how long it took.
    """
    task, log = bar.add_task(title, total=1, note=""), _Log(bar.console, title)

    def step(done: int, total: int, note: str) -> None:
        bar.update(task, completed=done, total=total, note=note[:48])
        log.step(done, total, note)

    yield step
    log.end()
    total = bar.tasks[task].total or 1
    bar.update(task, completed=total, note="")


class _Log:
    """Nothing on a terminal, which has bars."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._begun = self._said = time.monotonic()
        self._say(f"{title} ...")

    def step(self, done: int, total: int, note: str) -> None:
        if time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self._say(f"{self._title}: {done} of {total}" + (f", {note}" if note else ""))

    def end(self) -> None:
        self._say(f"{self._title}: done in {time.monotonic() - self._begun:.0f} s")

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
            self._console.file.flush()
