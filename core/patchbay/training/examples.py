"""Windows with classes, and their parts for training, validation and test. Windows are never shuffled across parts:
neighbours are next to the same.

Knows nothing of models and of how labels were found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from patchbay.errors import InputError
from patchbay.models.neuript.preprocess import windows
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.training.files import Opened, load
from patchbay.training.labels import Rule, starts_of
from patchbay.training.misfits import OUTSIDE, misfits
from patchbay.training.windows import OnFile, OnLeftOut, Source, shorter

PARTS = ("train", "validation", "test")
SHOWN = 5  # subjects of a part, in messages
SplitName = Literal["chronological", "subject", "given"]


@dataclass(frozen=True, slots=True)
class Examples:
    """The windows of one recording that have a class, in order of time; `part` where the data set says which.
    `misfits`: what does not fit, and how many of it.
    """

    source: Source
    labels: tuple[str, ...]
    subject: str
    part: str | None = None
    misfits: Mapping[str, int] = field(default_factory=dict)

    def take(self, numbers: Sequence[int]) -> Examples:
        labels = tuple(self.labels[number] for number in numbers)
        return replace(self, source=self.source.take(numbers), labels=labels)


@dataclass(frozen=True, slots=True)
class Split:
    """`chronological`: the end of every recording is its test part, what comes before it its validation part;
    `subject`: the last subjects of each class are; `given`: what the labels say. `counts`: how many subjects of each
    class there are in the three parts, in place of shares.
    """

    kind: SplitName = "chronological"
    validation: float = 0.15
    test: float = 0.3
    counts: Mapping[str, tuple[int, int, int]] | None = None


Parts = Mapping[str, list[Examples]]


def examples(
    paths: Sequence[Path],
    rule: Rule,
    steps: Steps,
    on_file: OnFile = lambda *_: None,
    on_left_out: OnLeftOut = lambda *_: None,
    *,
    annotations: Iterable[str] = (),
) -> list[Examples]:
    """Of all recordings that the rule knows. `on_file(path, number, of)` before each, `on_left_out(path, why)` for one
    of which there is no window. `annotations`: texts of which each has to be in one of them.

    Raises InputError, which names the file, for what cannot be read; for a text that is in none, with those that are;
    and where there is no window with a class.
    """
    found, texts, reasons = [], Counter[str](), Counter[str]()
    for number, path in enumerate(paths):
        on_file(path, number, len(paths))
        try:
            opened = load(path)
            one = _of_file(path, opened, rule, steps)
        except InputError as error:
            raise InputError(_naming(path, error.message), param=error.param) from error
        texts.update(event.text for event in opened.events)
        if isinstance(one, Examples):
            found.append(one)
        else:
            reasons[one] += 1
            on_left_out(path, one)
    _check_annotations(annotations, texts)
    if not found:
        why = "; ".join(f"{reason} ({count} recordings)" for reason, count in reasons.most_common(3))
        raise InputError(f"no window has a class: {why}", param="labels")
    return found


def _check_annotations(wanted: Iterable[str], texts: Counter[str]) -> None:
    absent = next((text for text in wanted if text not in texts), None)
    if absent is not None:
        there = ", ".join(f"{text!r} ({count} times)" for text, count in texts.most_common(20)) or "none"
        raise InputError(f"no recording has an annotation {absent!r}: there are {there}", param="class")


def split(found: Sequence[Examples], how: Split) -> Parts:
    """Raises InputError where a class is in no window of training or test."""
    dealt: dict[str, list[Examples]] = {part: [] for part in PARTS}
    if how.kind == "chronological":
        for one in found:
            for part, numbers in zip(PARTS, _in_time(one, how), strict=True):
                dealt[part].append(one.take(numbers))
    else:
        of_subject = _given(found) if how.kind == "given" else _by_subject(found, how)
        for one in found:
            dealt[of_subject[(one.subject, one.part)]].append(one)
    parts = {part: [one for one in ones if one.labels] for part, ones in dealt.items()}
    _check(parts, classes_of(found))
    return parts


def classes_of(found: Iterable[Examples]) -> tuple[str, ...]:
    """In order of their names."""
    return tuple(sorted({label for one in found for label in one.labels}, key=_natural))


def _of_file(path: Path, opened: Opened, rule: Rule, steps: Steps) -> Examples | str:
    """Or why there is none."""
    marks = rule(path, opened)
    if marks is None or marks.left_out or not marks.spans:
        return (marks and marks.left_out) or "the labels say nothing"
    if opened.recording.seconds < steps.window_seconds:
        return shorter(opened.recording.seconds, steps)
    places = starts_of(marks.spans, opened.recording.seconds, steps)
    unfit = misfits(marks.spans, opened.recording.seconds, steps)
    if unfit[OUTSIDE] == len(marks.spans):
        return f"its {opened.recording.seconds:g} s end before the first label, or begin after the last"
    if not places:
        return f"nothing that is labelled is as long as a window of {steps.window_seconds:g} s"
    names = tuple(marks.names.get(name, name) for name in opened.recording.names)
    cut = windows(replace(opened.recording, names=names), steps, [place / RATE for place in places])
    labels = tuple(places[round(start * RATE)] for start in cut.starts)
    if not labels:
        return f"every window was rejected ({cut.rejected[0].reason})"
    return Examples(Source(path, cut), labels, marks.subject, marks.part, unfit)


def _naming(path: Path, message: str) -> str:
    return message if message.startswith(str(path)) else f"{path}: {message}"


def _in_time(one: Examples, how: Split) -> list[list[int]]:
    """Numbers of windows of each part. What reaches into the next part is left out."""
    starts = one.source.windows.starts
    count = len(starts)
    ends = [start + one.source.windows.signal.shape[2] / RATE for start in starts]
    test = count - round(count * how.test)
    validation = test - round(count * how.validation)
    cuts = [0, validation, test, count]
    parts = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        until = starts[last] if last < count else math.inf
        parts.append([number for number in range(first, last) if ends[number] <= until + 1e-6])
    return parts


def unlike(found: Sequence[Examples], how: Split) -> list[str]:
    """Sentences on subjects that are not as many as `how.counts` says: shares of them are taken in place of counts."""
    sentences = []
    for classes, subjects in _groups(found).items():
        counts = _counts(classes, how)
        if counts is not None and sum(counts) != len(subjects):
            kind = " and ".join(classes)
            sentences.append(f"{len(subjects)} subjects are {kind}, not {sum(counts)}: they are split by shares")
    return sentences


def _by_subject(found: Sequence[Examples], how: Split) -> dict[tuple[str, str | None], str]:
    """Of each group of subjects that have the same classes, the first are for training and the last for test."""
    groups = _groups(found)
    names = [subject for subjects in groups.values() for subject in subjects]
    if len(names) < 2:
        raise InputError(
            f"a split by subject needs two, and there is {names[0]!r}, with {len(found)} recordings: a subject is the "
            "first folder below --data, or what the column subject of --labels says. Give --data the folder with one "
            "folder a subject, or take --split chronological",
            param="split",
        )
    dealt: dict[str, str] = {}
    for classes, subjects in groups.items():
        bounds = _bounds(classes, len(subjects), how)
        for part, first, last in zip(PARTS, (0, *bounds), (*bounds, len(subjects)), strict=True):
            dealt |= dict.fromkeys(subjects[first:last], part)
    return {(one.subject, one.part): dealt[one.subject] for one in found}


def _groups(found: Sequence[Examples]) -> dict[tuple[str, ...], list[str]]:
    """Classes -> the subjects that have these, in order."""
    kinds: dict[str, set[str]] = {}
    for one in found:
        kinds.setdefault(one.subject, set()).update(one.labels)
    groups: dict[tuple[str, ...], list[str]] = {}
    for subject in sorted(kinds, key=_natural):
        groups.setdefault(tuple(sorted(kinds[subject])), []).append(subject)
    return groups


def _counts(classes: tuple[str, ...], how: Split) -> tuple[int, int, int] | None:
    return (how.counts or {}).get("" if len(classes) > 1 else classes[0]) or (how.counts or {}).get("")


def _bounds(classes: tuple[str, ...], count: int, how: Split) -> tuple[int, int]:
    counts = _counts(classes, how)
    if counts is not None and sum(counts) == count:
        return counts[0], counts[0] + counts[1]
    test = count - max(1, round(count * how.test)) if count > 1 else count
    return test - round(count * how.validation), test


def _given(found: Sequence[Examples]) -> dict[tuple[str, str | None], str]:
    wrong = next((one for one in found if one.part not in PARTS), None)
    if wrong is not None:
        raise InputError(
            f"{wrong.source.path} has the part {wrong.part!r}: it is {', '.join(PARTS)} where the split is given",
            param="split",
        )
    return {(one.subject, one.part): str(one.part) for one in found}


def _check(parts: Parts, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise InputError(f"all windows are of the class {classes[0]!r}: two are needed", param="labels")
    for part in ("train", "test"):
        there = {label for one in parts[part] for label in one.labels}
        lacking = [name for name in classes if name not in there]
        if lacking:
            dealt = "; ".join(f"{name}: {_told(ones)}" for name, ones in parts.items())
            raise InputError(
                f"no window of the {part} part is of the class {lacking[0]!r}: there are in {dealt}", param="split"
            )


def _told(ones: Sequence[Examples]) -> str:
    """`3 left, 4 right, of S1, S2`."""
    labels = Counter(label for one in ones for label in one.labels)
    subjects = sorted({one.subject for one in ones}, key=_natural)
    shown = ", ".join(subjects[:SHOWN]) + (f" and {len(subjects) - SHOWN} more" if len(subjects) > SHOWN else "")
    counts = ", ".join(f"{labels[name]} {name}" for name in sorted(labels, key=_natural))
    return f"{counts}, of {shown}" if labels else "none"


def _natural(name: str) -> list[tuple[int, int | str]]:
    """`S2` before `S10`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
