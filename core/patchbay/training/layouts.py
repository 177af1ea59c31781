"""How public data sets lie on disk, and what is said of their recordings there: by names of files and folders, by
annotations, by files beside them.

Each function takes the data set's folder, wherever in it recordings begin. Knows nothing of signals and of models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from edfio import read_edf
from scipy import io  # type: ignore[import-untyped]

from patchbay.errors import InputError
from patchbay.models.neuript.edf import Event
from patchbay.models.neuript.steps import RATE
from patchbay.training.files import Opened
from patchbay.training.labels import Marks, Rule, Span

Pattern = re.Pattern[str]
Found = re.Match[str]

MENTAL_ARITHMETIC = re.compile(r"(?:^|/)Subject(?P<subject>\d\d)_(?P<task>[12])\.edf$")
MUMTAZ = re.compile(r"(?:^|[/_])(?P<kind>H|MDD) +(?P<subject>S\d+) +(?:EC|EO)\.edf$")
P300 = re.compile(r"(?:^|/)s(?!08|10|12)(?P<subject>\d\d)/rc\d+\.edf$")
SLEEP = re.compile(r"(?:^|/)(?P<night>(?P<subject>(?P<study>S[CT])\d{3})\d[A-Z])\w-PSG\.edf$")
SEED_V = re.compile(r"(?:^|/)(?P<subject>[1-9]|1[0-5])_(?P<session>[123])_\d+\.cnt$")
BCIC = re.compile(r"(?:^|/)A0(?P<subject>[1-9])(?P<session>[TE])\.gdf$")
TUAB = re.compile(r"(?:^|/)(?P<part>train|eval)/(?P<kind>abnormal|normal)/(?:.*/)?(?P<subject>\w{8})_[^/]*\.edf$")
TUEV = re.compile(r"(?:^|/)(?P<part>train|eval)/(?P<subject>[^/]+)/[^/]+\.edf$")

# Five subjects in turn: 6:2:2, and something of each part where a few of them are there.
IN_TURN = ("train", "test", "train", "validation", "train")
STAGES = {"W": "W", "1": "N1", "2": "N2", "3": "N3", "4": "N3", "R": "R"}
EMOTIONS = ("disgust", "fear", "sad", "neutral", "happy")
# Session -> when its trials begin and end, in seconds, and what was shown: numbers of EMOTIONS.
TRIALS = {
    1: (
        (30, 132, 287, 555, 773, 982, 1271, 1628, 1730, 2025, 2227, 2435, 2667, 2932, 3204),
        (102, 228, 524, 742, 920, 1240, 1568, 1697, 1994, 2166, 2401, 2607, 2901, 3172, 3359),
        (4, 1, 3, 2, 0, 4, 1, 3, 2, 0, 4, 1, 3, 2, 0),
    ),
    2: (
        (30, 299, 548, 646, 836, 1000, 1091, 1392, 1657, 1809, 1966, 2186, 2333, 2490, 2741),
        (267, 488, 614, 773, 967, 1059, 1331, 1622, 1777, 1908, 2153, 2302, 2428, 2709, 2817),
        (2, 1, 3, 0, 4, 4, 0, 3, 2, 1, 3, 4, 1, 2, 0),
    ),
    3: (
        (30, 353, 478, 674, 825, 908, 1200, 1346, 1451, 1711, 2055, 2307, 2457, 2726, 2888),
        (321, 418, 643, 764, 877, 1147, 1284, 1418, 1679, 1996, 2275, 2425, 2664, 2857, 3066),
        (2, 1, 3, 0, 4, 4, 0, 3, 2, 1, 3, 4, 1, 2, 0),
    ),
}
MOVEMENTS = ("left", "right", "feet", "tongue")  # of the cues 769 to 772, and of the classes 1 to 4 in .mat files
UNKNOWN_CUE = "783"
BCIC_22 = (
    *("Fz", "FC3", "FC1", "FCz", "FC2", "FC4", "C5", "C3", "C1", "Cz", "C2"),
    *("C4", "C6", "CP3", "CP1", "CPz", "CP2", "CP4", "P1", "Pz", "P2", "POz"),
)
_NAMED = ("Fz", "C3", "Cz", "C4", "Pz")  # the others are all called EEG in the files, and numbered by MNE
_NUMBERED = [name for name in BCIC_22 if name not in _NAMED]
BCIC_NAMES = {f"EEG-{called}": name for called, name in (*zip(_NAMED, _NAMED, strict=True), *enumerate(_NUMBERED))}
EVENTS = ("spsw", "gped", "pled", "eyem", "artf", "bckg")  # 1 to 6 in .rec files


def mental_arithmetic(folder: Path) -> Rule:
    """Subjects 1 to 28, 29 to 32, 33 to 36, of which the files count from 0."""

    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        label = "rest" if found["task"] == "1" else "stress"
        part = _part(int(found["subject"]) + 1, 28, 32)
        return Marks(found["subject"], (Span(0.0, None, label),), part)

    return _by_name(folder, MENTAL_ARITHMETIC, marks)


def mumtaz(folder: Path) -> Rule:
    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        label = "depressed" if found["kind"] == "MDD" else "control"
        return Marks(f"{found['kind']} {found['subject']}", (Span(0.0, None, label),))

    return _by_name(folder, MUMTAZ, marks)


def p300(folder: Path) -> Rule:
    """A run spells one letter, `#TgtA`; a flash is of a row's or a column's six, `ABCDEF`: a target where the letter is
    among them. Some files write `_` as `#`.
    """

    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        letters = {event.text[4].replace("#", "_") for event in opened.events if re.match("#Tgt.", event.text)}
        if len(letters) != 1:
            raise InputError(f"an annotation says which letter is spelt (#TgtA): here {len(letters)} do", param="data")
        letter = letters.pop()
        flashes = [event for event in opened.events if re.fullmatch("[A-Z0-9]{5}[A-Z0-9_#]", event.text)]
        return Marks(found["subject"], tuple(_flash(event, letter) for event in flashes))

    return _by_name(folder, P300, marks)


def _flash(event: Event, letter: str) -> Span:
    label = "target" if letter in event.text.replace("#", "_") else "non-target"
    return Span(event.onset, event.onset, label)


def sleep_edfx(folder: Path) -> Rule:
    """Subjects of both studies are dealt to the parts in turn, with all of their nights."""
    subjects: dict[str, set[str]] = {}
    for night in _matches(folder, SLEEP):
        subjects.setdefault(night["study"], set()).add(night["subject"])
    part = {
        name: IN_TURN[number % len(IN_TURN)] for names in subjects.values() for number, name in enumerate(sorted(names))
    }

    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        scored = sorted(path.parent.glob(f"{found['night']}*-Hypnogram.edf"))
        if not scored:
            raise InputError(f"{found['night']}?-Hypnogram.edf is not beside it", param="data")
        spans = (_stage(event) for event in _annotations(scored[0]))
        return Marks(found["subject"], tuple(span for span in spans if span), part[found["subject"]])

    return _by_name(folder, SLEEP, marks)


def _stage(event: Event) -> Span | None:
    """None for movement, and for what was not scored."""
    stage = STAGES.get(event.text.removeprefix("Sleep stage "))
    return None if stage is None else Span(event.onset, event.onset + (event.duration or 0.0), stage)


def _annotations(file: Path) -> list[Event]:
    try:
        found = read_edf(file, header_encoding="latin-1").annotations
        return [Event(each.onset, each.duration, each.text) for each in found]
    except Exception as error:  # whatever a header's bytes provoke in the parser
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{file.name} cannot be read: {reason}", param="data") from error


def seed_v(folder: Path) -> Rule:
    """Subjects 1 to 8, 9 and 10, 11 to 15; a sixteenth is in the files, and not in the paper."""

    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        trials = zip(*TRIALS[int(found["session"])], strict=True)
        spans = tuple(Span(float(start), float(end), EMOTIONS[shown]) for start, end, shown in trials)
        return Marks(found["subject"], spans, _part(int(found["subject"]), 8, 10))

    return _by_name(folder, SEED_V, marks)


def bcic_iv_2a(folder: Path) -> Rule:
    """Subjects 1 to 5, 6 and 7, 8 and 9. What was cued in the second sessions is in A01E.mat, anywhere in the folder;
    without it they are left out.
    """

    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        known = {str(769 + number): name for number, name in enumerate(MOVEMENTS)}
        cues = [event for event in opened.events if event.text in known]
        labels = [known[cue.text] for cue in cues]
        if found["session"] == "E":
            keys = sorted(folder.rglob(f"{path.stem}.mat"))
            if not keys:
                why = f"{path.stem}.mat, which says what was cued, is not in the folder"
                return Marks(found["subject"], (), left_out=why)
            cues = [event for event in opened.events if event.text == UNKNOWN_CUE]
            labels = _class_labels(keys[0], len(cues))
        spans = (Span(cue.onset, cue.onset, label) for cue, label in zip(cues, labels, strict=True))
        return Marks(found["subject"], tuple(spans), _part(int(found["subject"]), 5, 7), BCIC_NAMES)

    return _by_name(folder, BCIC, marks)


def _class_labels(file: Path, count: int) -> list[str]:
    try:
        numbers = io.loadmat(file, variable_names=["classlabel"])["classlabel"].reshape(-1)
        labels = [dict(enumerate(MOVEMENTS, 1))[int(number)] for number in numbers]
    except Exception as error:  # whatever a file's bytes provoke in the parser
        raise InputError(f"{file.name} has no 'classlabel' of 1 to 4 that can be read", param="data") from error
    if len(labels) != count:
        raise InputError(f"{file.name} has {len(labels)} classes for {count} cues", param="data")
    return labels


def tuab(folder: Path) -> Rule:
    """The last fifth of the subjects that are not for test is for validation."""
    held_out = _last_fifth(folder, TUAB)

    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        label = "normal" if found["kind"] == "normal" else "pathological"
        return Marks(found["subject"], (Span(0.0, None, label),), _official(found, held_out))

    return _by_name(folder, TUAB, marks)


def tuev(folder: Path) -> Rule:
    """Events are in a .rec beside the recording, a line for each channel that has one. A window is for all channels:
    what begins at one time is one event, of the class that most lines have, of equals the first of EVENTS.
    """
    held_out = _last_fifth(folder, TUEV)

    def marks(found: Found, path: Path, opened: Opened) -> Marks:
        said: dict[int, Counter[int]] = {}
        for start, code in _rec(path.with_suffix(".rec")):
            said.setdefault(round(start * RATE), Counter())[code] += 1
        most = {place: min(codes, key=lambda code: (-codes[code], code)) for place, codes in said.items()}
        spans = tuple(Span(place / RATE, place / RATE, EVENTS[code - 1]) for place, code in sorted(most.items()))
        return Marks(found["subject"], spans, _official(found, held_out))

    return _by_name(folder, TUEV, marks)


def _rec(file: Path) -> list[tuple[float, int]]:
    """When events begin, in seconds, and their codes."""
    try:
        rows = [line.split(",") for line in file.read_text("utf-8").splitlines() if line.strip()]
        events = [(float(start), int(code)) for _, start, _, code in rows]
    except (OSError, ValueError) as error:
        raise InputError(f"{file.name} beside it cannot be read: {error}", param="data") from error
    if not all(1 <= code <= len(EVENTS) for _, code in events):
        raise InputError(f"{file.name} has a code that is not 1 to {len(EVENTS)}", param="data")
    return events


def _by_name(folder: Path, pattern: Pattern, marks: Callable[[Found, Path, Opened], Marks]) -> Rule:
    def rule(path: Path, opened: Opened) -> Marks | None:
        found = pattern.search(path.relative_to(folder).as_posix())
        return None if found is None else marks(found, path, opened)

    return rule


def _matches(folder: Path, pattern: Pattern) -> Sequence[Found]:
    found = (pattern.search(path.relative_to(folder).as_posix()) for path in folder.rglob("*.edf"))
    return [each for each in found if each]


def _part(subject: int, last_train: int, last_validation: int) -> str:
    return "train" if subject <= last_train else "validation" if subject <= last_validation else "test"


def _last_fifth(folder: Path, pattern: Pattern) -> set[str]:
    subjects = sorted({found["subject"] for found in _matches(folder, pattern) if found["part"] == "train"})
    return set(subjects[len(subjects) - round(len(subjects) / 5) :])


def _official(found: Found, held_out: set[str]) -> str:
    if found["part"] == "eval":
        return "test"
    return "validation" if found["subject"] in held_out else "train"
