"""What was going on when in a recording: by its annotations, or by a table. Knows nothing of signals and of models."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patchbay.errors import InputError
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.training.channels import check_channels
from patchbay.training.files import Opened

COLUMNS = ("file", "label", "onset", "duration", "subject", "part")
SEPARATORS = (",", "\t", ";")
SUGGESTED = 3


@dataclass(frozen=True, slots=True)
class Span:
    """In seconds from the recording's beginning; `end` None: to its end."""

    start: float
    end: float | None
    label: str


@dataclass(frozen=True, slots=True)
class Marks:
    """Of one recording. `part`: train, validation or test, where the data set says which. `names`: what the file calls
    a channel -> its name, where that is another. `left_out`: why nothing is said of it, where the data set has it.
    """

    subject: str
    spans: tuple[Span, ...]
    part: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    left_out: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """Of a table, as it is written there."""

    line: int
    file: str
    label: str
    onset: str
    duration: str
    subject: str
    part: str


Rule = Callable[[Path, Opened], Marks | None]  # None: the recording is not of the data set


def by_annotations(folder: Path, classes: Mapping[str, str]) -> Rule:
    """`classes`: an annotation's text -> the class that it stands for; with none given every text is a class."""

    def marks(path: Path, opened: Opened) -> Marks:
        spans = (
            Span(event.onset, event.onset + (event.duration or 0.0), classes.get(event.text, event.text))
            for event in opened.events
            if not classes or event.text in classes
        )
        return Marks(subject_of(path, folder), tuple(spans))

    return marks


def by_table(file: Path, folder: Path) -> Rule:
    """A table with columns, by commas, semicolons or tabs: `file` (its path below the folder) and `label`, where wanted
    `onset` and `duration` in seconds, `subject` and `part`. A line without an onset is about the whole recording.

    Raises InputError, which names the line: where a file in it is not there, what it says is outside of it, or a
    recording is said to be of two subjects or parts: it is dealt out as a whole.
    """
    rows = _rows(file)
    _check_files(rows, file, folder)
    _check_whole(rows, file)

    def marks(path: Path, opened: Opened) -> Marks | None:
        own = [row for row in rows if row.file == path.relative_to(folder).as_posix()]
        if not own:
            return None
        spans = tuple(_span(row, file, opened.recording.seconds) for row in own)
        return Marks(own[0].subject or subject_of(path, folder), spans, own[0].part or None)

    return marks


def only_with(channels: Sequence[str] | None, rule: Rule) -> Rule:
    """The same, and InputError for a recording of the data set that lacks one of the channels."""

    def marks(path: Path, opened: Opened) -> Marks | None:
        found = rule(path, opened)
        if found is not None and found.spans:
            check_channels(opened.recording.names, channels)
        return found

    return marks


def subject_of(path: Path, folder: Path) -> str:
    """The first folder below `folder` that leads to it; a file that lies in `folder` itself is a subject of its own."""
    first = path.relative_to(folder).parts[0]
    return path.stem if first == path.name else first


def starts_of(spans: Iterable[Span], seconds: float, steps: Steps) -> dict[int, str]:
    """Where windows begin, in samples at the model's rate, and the class of each.

    Raises InputError where spans without a duration are to be filled, and where two classes claim one window.
    """
    found: dict[int, str] = {}
    for span in spans:
        for start in _starts(span, seconds, steps):
            place = round(start * RATE)
            if found.setdefault(place, span.label) != span.label:
                raise InputError(
                    f"at {start:g} s both {found[place]!r} and {span.label!r} are said of one window", param="labels"
                )
    return dict(sorted(found.items()))


def _starts(span: Span, seconds: float, steps: Steps) -> list[float]:
    if steps.onset_seconds is not None:
        return [span.start + steps.onset_seconds]
    end = seconds if span.end is None else min(span.end, seconds)
    if span.end is not None and span.end <= span.start:
        raise InputError(
            f"{span.label!r} at {span.start:g} s has no duration: say where its window begins after it (--onset 0)",
            param="onset",
        )
    stride = steps.stride_seconds or steps.window_seconds
    count = math.floor((end - span.start - steps.window_seconds) / stride + 1e-6) + 1
    return [span.start + number * stride for number in range(max(0, count))]


def _rows(file: Path) -> list[_Row]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}", param="labels") from error
    header = lines[0] if lines else ""
    mark = max(SEPARATORS, key=lambda each: (len(set(_names(header, each)) & set(COLUMNS)), header.count(each)))
    reader = csv.DictReader(lines[1:], _checked(_names(header, mark), file), delimiter=mark)
    rows = [_row(line, reader.line_num + 1, file) for line in reader]
    if not rows:
        raise InputError(f"{file} has no line below its header", param="labels")
    return rows


def _names(header: str, mark: str) -> list[str]:
    return [name.strip().strip('"').lower() for name in header.split(mark)]


def _checked(columns: list[str], file: Path) -> list[str]:
    missing = [name for name in COLUMNS[:2] if name not in columns]
    unknown = [name for name in columns if name not in COLUMNS]
    if missing or unknown:
        what = f"lacks the column {missing[0]!r}" if missing else f"has a column {unknown[0]!r}"
        there = ", ".join(columns) if any(columns) else "none"
        more = ", ".join(COLUMNS[2:])
        raise InputError(
            f"{file} {what}: its columns are {there}; wanted are file and label, and where known {more}", param="labels"
        )
    return columns


def _row(line: Mapping[str, str | None], number: int, file: Path) -> _Row:
    found = {name: (line.get(name) or "").strip() for name in COLUMNS}
    lacking = next((name for name in COLUMNS[:2] if not found[name]), None)
    if lacking:
        raise InputError(f"{file}, line {number}, has no {lacking}", param="labels")
    found["file"] = found["file"].replace("\\", "/").removeprefix("./")
    return _Row(number, **found)


def _check_files(rows: Iterable[_Row], table: Path, folder: Path) -> None:
    there = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    known = set(there)
    wrong = next((row for row in rows if row.file not in known), None)
    if wrong is None:
        return
    same = [name for name in there if name.rpartition("/")[2] == wrong.file.rpartition("/")[2]]
    near = same or difflib.get_close_matches(wrong.file, there, SUGGESTED, 0.5)
    hint = f"; did you mean {' or '.join(near[:SUGGESTED])}?" if near else ": files are named by their paths below it"
    raise InputError(f"{table}, line {wrong.line}, names {wrong.file}, which is not in {folder}{hint}", param="labels")


def _check_whole(rows: Iterable[_Row], table: Path) -> None:
    first: dict[str, _Row] = {}
    for row in rows:
        before = first.setdefault(row.file, row)
        for column in ("subject", "part"):
            here, there = getattr(row, column), getattr(before, column)
            if here != there:
                raise InputError(
                    f"{table}, line {row.line}: {row.file} is of the {column} {here!r}, and of {there!r} in line "
                    f"{before.line}: a recording is of one as a whole, so cut the file in two",
                    param="labels",
                )


def _span(row: _Row, table: Path, seconds: float) -> Span:
    if not row.onset:
        return Span(0.0, None, row.label)
    try:
        start, length = float(row.onset), float(row.duration or 0.0)
        if not (math.isfinite(start) and math.isfinite(length) and length >= 0):
            raise ValueError("not finite, or negative")
    except ValueError:
        said = f"onset {row.onset!r} and duration {row.duration!r}"
        raise InputError(
            f"{table}, line {row.line}: onset and duration are seconds, as 1.5, and not {said}", param="labels"
        ) from None
    if not 0 <= start < seconds:
        raise InputError(
            f"{table}, line {row.line}: {start:g} s is outside of {row.file}, which has {seconds:g} s", param="labels"
        )
    return Span(start, start + length, row.label)
