"""What commands print: results on stdout, as a table or as one JSON object; progress on stderr, as a bar on terminals
and elsewhere as a line now and then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from patchbay_server.json_values import finite

# Tables are not cut to 80 columns where they go into a file or a pipe.
PIPE_WIDTH = 200
COUNTS: tuple[type[ProgressColumn], ...] = (MofNCompleteColumn, TimeRemainingColumn)
LINE_EVERY_S = 10.0
HEAD_ALONE = "the head only: every weight of the base stays as it is"
BYTES: tuple[type[ProgressColumn], ...] = (DownloadColumn, TransferSpeedColumn, TimeRemainingColumn)


def open_console(*, stderr: bool = False) -> Console:
    """Markup stays off: names and messages come from files and servers."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def print_json(payload: Mapping[str, object]) -> None:
    """The one object that `--json` promises; ASCII, so that it passes every terminal and pipe, null where a number is
    none.
    """
    print(json.dumps(finite(payload), indent=2, allow_nan=False))


def printable(value: object) -> str:
    """Text with control characters escaped, so that no file and no server can steer the terminal."""
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def facts(rows: Mapping[str, object]) -> Table:
    """Two columns, what and how much; rows without a value are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, printable(value))
    return table


def listing(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str] = ()) -> Table:
    """A table with a header; `numeric` columns are set right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else printable(value) for value in row))
    return table


def size_text(num_bytes: int) -> str:
    """`12345` -> `12.3 kB (12,345 bytes)`."""
    return f"{num_bytes} bytes" if num_bytes < 1000 else f"{decimal(num_bytes)} ({num_bytes:,} bytes)"


def time_text(unix_seconds: float) -> str:
    """Local time, to the second."""
    return datetime.fromtimestamp(unix_seconds).astimezone().isoformat(" ", "seconds")


@contextmanager
def progress(
    title: str, columns: tuple[type[ProgressColumn], ...] = COUNTS
) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with an eta on stderr, or lines where that is no terminal; yields `update(done, total, note)`. `done` 0
    starts the clock anew: a new stage.
    """
    console = open_console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, console, decimal if columns is BYTES else "{:,}".format)
        return
    note_column = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    text = TextColumn("{task.description}", markup=False, table_column=note_column)
    bar = Progress(
        text,
        BarColumn(),
        *(column() for column in columns),
        console=console,
        expand=True,
        transient=True,
        speed_estimate_period=600,  # evaluations of a search take longer than the default window of 30 s
    )
    with bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int, note: str) -> None:
            if done == 0:
                bar.reset(task, total=total)
            bar.update(task, total=total, completed=done, description=f"{title}: {printable(note)}")

        yield update


class _Lines:
    """What a log shows of long work: `pre-training: 120 of 800, 0:12:03 left, loss 1.234`. Of short work, nothing."""

    def __init__(self, title: str, console: Console, shown: Callable[[int], str]) -> None:
        self._title, self._console, self._shown = title, console, shown
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None  # of the stage: when, and how much was done

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done == 0 or self._first is None:
            self._first = now, done
        if now - self._said < LINE_EVERY_S:
            return
        self._said = now
        begun, before = self._first
        parts = [f"{self._title}: {self._shown(done)} of {self._shown(total)}"]
        if before < done <= total:
            seconds = (now - begun) / (done - before) * (total - done)
            parts.append(f"{timedelta(seconds=round(seconds))} left")
        self._console.print(", ".join([*parts, printable(note)] if note else parts), soft_wrap=True)
        self._console.file.flush()
