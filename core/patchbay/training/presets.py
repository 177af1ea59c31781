"""The eight data sets that NeurIPT's paper fine-tunes it on: what is done to their recordings, what is said of them,
and which of them are trained and tested on.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchbay.errors import InputError
from patchbay.models.neuript.montage import BCIC_16, PAPER_20, SEED_V_17, SLEEP_2
from patchbay.models.neuript.steps import Steps
from patchbay.training import layouts
from patchbay.training.examples import Split
from patchbay.training.files import files_in
from patchbay.training.labels import Rule


@dataclass(frozen=True, slots=True)
class Preset:
    """`rule` is given the data set's folder. `files`: which recordings count, by their paths below it; `like`: one."""

    name: str
    about: str
    steps: Steps
    split: Split
    rule: Callable[[Path], Rule]
    files: layouts.Pattern
    like: str

    def recordings(self, folder: Path) -> list[Path]:
        """By name. Raises InputError where there is none."""
        found = [path for path in files_in(folder) if self.files.search(path.relative_to(folder).as_posix())]
        if not found:
            raise InputError(f"{folder} has no recording of {self.name}: they are like {self.like}", param="data")
        return found


def preset_called(name: str) -> Preset:
    """Raises InputError, with the names that there are."""
    if name not in PRESETS:
        raise InputError(f"{name!r} is no preset: {', '.join(PRESETS)}", param="preset")
    return PRESETS[name]


def _electrodes(pairs: Sequence[str]) -> tuple[str, ...]:
    """Of each pair, once: whatever else is recorded may have names that the system lacks."""
    return tuple(dict.fromkeys(name for pair in pairs for name in pair.split("-")))


_AVERAGE_20 = {"reference": "average", "channels": _electrodes(PAPER_20), "pairs": PAPER_20, "rejects": False}
_RECORDED_20 = _AVERAGE_20 | {"reference": "recorded"}
_GIVEN = Split("given")

# Of two classes the second is the one that AUC-PR is about: names are such that it is the paper's.
_ALL = (
    Preset(
        "mental-arithmetic",
        "stress: rest or mental arithmetic, 36 subjects (PhysioNet eegmat)",
        Steps.of(_AVERAGE_20 | {"window_seconds": 5.0, "line_hz": 50.0}),
        _GIVEN,
        layouts.mental_arithmetic,
        layouts.MENTAL_ARITHMETIC,
        "Subject00_1.edf",
    ),
    Preset(
        "mumtaz2016",
        "major depression, eyes closed and open, 62 subjects",
        Steps.of(_AVERAGE_20 | {"window_seconds": 5.0, "line_hz": 50.0}),
        Split("subject", validation=0.15, test=0.16, counts={"control": (19, 4, 5), "depressed": (24, 5, 5)}),
        layouts.mumtaz,
        layouts.MUMTAZ,
        "'MDD S1 EC.edf'",
    ),
    Preset(
        "physionet-p300",
        "a speller's target flashes or others, 9 subjects (PhysioNet erpbci)",
        Steps.of(_AVERAGE_20 | {"window_seconds": 2.0, "onset_seconds": -0.7, "line_hz": 60.0}),
        Split("subject", validation=0.2, test=0.2),
        layouts.p300,
        layouts.P300,
        "s01/rc01.edf",
    ),
    Preset(
        "sleep-edfx",
        "five stages of sleep, 197 nights (PhysioNet sleep-edfx)",
        # Not to the average, which would make of two channels one and its negative.
        Steps(window_seconds=30.0, channels=SLEEP_2, rejects=False),
        _GIVEN,
        layouts.sleep_edfx,
        layouts.SLEEP,
        "SC4001E0-PSG.edf, with SC4001EC-Hypnogram.edf beside it",
    ),
    Preset(
        "seed-v",
        "five emotions that films evoke, 15 subjects",
        Steps(window_seconds=1.0, channels=SEED_V_17, line_hz=50.0, rejects=False),
        _GIVEN,
        layouts.seed_v,
        layouts.SEED_V,
        "1_1_20180804.cnt",
    ),
    Preset(
        "bcic-iv-2a",
        "four imagined movements, 9 subjects (BCI Competition IV)",
        Steps(
            channels=_electrodes(BCIC_16),
            pairs=BCIC_16,
            line_hz=50.0,
            onset_seconds=0.0,  # the cue, two seconds after the trial's beginning
            rejects=False,
        ),
        _GIVEN,
        layouts.bcic_iv_2a,
        layouts.BCIC,
        "A01T.gdf and A01E.gdf, with A01E.mat",
    ),
    Preset(
        "tuab",
        "normal or pathological, 2993 recordings (Temple University Hospital)",
        Steps.of(_RECORDED_20 | {"window_seconds": 10.0, "line_hz": 60.0}),
        _GIVEN,
        layouts.tuab,
        layouts.TUAB,
        "edf/train/abnormal/01_tcp_ar/aaaaaaaq_s004_t000.edf",
    ),
    Preset(
        "tuev",
        "six kinds of events (Temple University Hospital)",
        # An event takes a second: two before it, and two after.
        Steps.of(_RECORDED_20 | {"window_seconds": 5.0, "onset_seconds": -2.0, "line_hz": 60.0}),
        _GIVEN,
        layouts.tuev,
        layouts.TUEV,
        "edf/train/aaaaaaar/aaaaaaar_00000001.edf, with its .rec beside it",
    ),
)
PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}
