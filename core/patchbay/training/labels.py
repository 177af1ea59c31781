"""What was going on when in a recording: by its annotations, or by a table. Knows nothing of signals and of models."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from patchbay.errors import InputError
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.training.files import Opened

COLUMNS = ("file", "label", "onset", "duration", "subject", "part")


@dataclass(frozen=True, slots=True)
class Span:
    """In seconds from the recording's beginning; `end` None: to its end."""

    start: float
    end: float | None
    label: str


@dataclass(frozen=True, slots=True)
class Marks:
    """Of one recording. `part`: train, validation or test, where the data set says which. `names`: what the file calls
    a channel -> its name, where that is another.
    """

    subject: str
    spans: tuple[Span, ...]
    part: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)


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
    """A table with columns, by tabs or commas: `file` (below the folder) and `label`, where wanted `onset` and
    `duration` in seconds, `subject` and `part`. A line without an onset is about the whole recording.

    Raises InputError, which names the line, and where a file in it is not there.
    """
    rows = _rows(file)
    known = {str(row["file"]) for row in rows}
    absent = sorted(name for name in known if not (folder / name).is_file())
    if absent:
        raise InputError(f"{file} names {absent[0]}, which is not in {folder}", param="labels")

    def marks(path: Path, opened: Opened) -> Marks | None:
        own = [row for row in rows if row["file"] == path.relative_to(folder).as_posix()]
        if not own:
            return None
        subject, part = own[0].get("subject") or subject_of(path, folder), own[0].get("part") or None
        return Marks(subject, tuple(_span(row, file) for row in own), part)

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


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}", param="labels") from error
    lines = text.splitlines()
    reader = csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    columns = list(reader.fieldnames or ())
    missing = [name for name in COLUMNS[:2] if name not in columns]
    unknown = [name for name in columns if name not in COLUMNS]
    if missing or unknown:
        what = f"lacks the column {missing[0]!r}" if missing else f"has a column {unknown[0]!r}"
        raise InputError(f"{file} {what}: it has {', '.join(COLUMNS)}, of which two are needed", param="labels")
    return [{name: value or "" for name, value in row.items() if name} for row in reader]


def _span(row: Mapping[str, str], file: Path) -> Span:
    try:
        onset, duration = row.get("onset"), row.get("duration")
        if not onset:
            return Span(0.0, None, row["label"])
        start, length = float(onset), float(duration or 0.0)
        if not (math.isfinite(start) and math.isfinite(length) and length >= 0):
            raise ValueError("onset and duration are seconds")
        return Span(start, start + length, row["label"])
    except ValueError as error:
        raise InputError(f"{file}: {row['file']} at {row.get('onset')!r}: {error}", param="labels") from error
