"""Labels that do not fit their recordings: what is made of them is less, or other, than what they say.

Knows nothing of files and of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from patchbay.models.neuript.steps import RATE, Steps
from patchbay.training.labels import Span

OUTSIDE = "labels outside of their recording, which are not used"
CUT = "labels that reach past the end of their recording, and are cut there"
SHORT = "labels shorter than a window, which are not used"
WINDOW_OUTSIDE = "windows that reach out of their recording, and are left out"
INTO_NEXT = "windows that reach into the next label"
SHOWN = 3  # recordings, in a sentence
ROUNDING_S = 1e-6


def misfits(spans: Sequence[Span], seconds: float, steps: Steps) -> Counter[str]:
    """Kind -> how many labels, or windows of them, of a recording that has so many seconds."""
    found = Counter[str]()
    begins = sorted({span.start for span in spans})
    following = dict(zip(begins, begins[1:], strict=False))
    for span in spans:
        if not 0 <= span.start < seconds:
            found[OUTSIDE] += 1
        elif steps.onset_seconds is None:
            found.update(_filled(span, seconds, steps))
        else:
            found.update(_at_onset(span, following.get(span.start), seconds, steps))
    return found


def sentences(counts: Iterable[tuple[Path, Mapping[str, int]]]) -> list[str]:
    """Of each kind one, with how many there are in which recordings."""
    of_kind: dict[str, dict[str, int]] = {}
    for path, found in counts:
        for kind, count in found.items():
            of_kind.setdefault(kind, {})[path.name] = of_kind.get(kind, {}).get(path.name, 0) + count
    return [f"{kind}: {sum(files.values())}, in {_listed(list(files))}" for kind, files in of_kind.items()]


def notes(found: Iterable[tuple[Path, Sequence[str]]]) -> list[str]:
    """Of each text one sentence, with the recordings of which it is said."""
    of_text: dict[str, list[str]] = {}
    for path, texts in found:
        for text in texts:
            of_text.setdefault(text, []).append(path.name)
    return [f"{_listed(names)}: {text}" for text, names in of_text.items()]


def _filled(span: Span, seconds: float, steps: Steps) -> list[str]:
    end = seconds if span.end is None else min(span.end, seconds)
    is_cut = span.end is not None and span.end > seconds + 1 / RATE
    is_short = end - span.start < steps.window_seconds - ROUNDING_S  # as `starts_of` has it
    return [CUT] * is_cut + [SHORT] * is_short


def _at_onset(span: Span, following: float | None, seconds: float, steps: Steps) -> list[str]:
    assert steps.onset_seconds is not None
    start = span.start + steps.onset_seconds
    end = start + steps.window_seconds
    if start < -0.5 / RATE or end > seconds + 0.5 / RATE:
        return [WINDOW_OUTSIDE]
    return [INTO_NEXT] if following is not None and end > following + 0.5 / RATE else []


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} recordings more" if more > 0 else "")
