"""Public data sets, written small, become the windows, classes and parts that the paper states."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import io
from tests.training.layouts import WRITERS, write_bcic, write_cnt, write_gdf, write_sleep, write_tuev
from tests.training.recordings import signal

from patchbay.errors import InputError
from patchbay.models.neuript.montage import BCIC_16, PAPER_20, SEED_V_17, SLEEP_2, Montage
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.training.examples import PARTS, Examples, Parts, examples, split
from patchbay.training.files import load
from patchbay.training.layouts import BCIC_NAMES, TRIALS
from patchbay.training.presets import PRESETS, preset_called

TRIAL_CUES = (2.0, 8.0, 14.0, 20.0)


@dataclass(frozen=True)
class Stated:
    """`rejected`: of all recordings. `starts`: where windows begin in the first one, in seconds. `parts`: windows of
    each class.
    """

    seconds: float
    channels: tuple[str, ...]
    recordings: int
    starts: tuple[float, ...]
    parts: tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]
    subjects: tuple[str, str, str]
    rejected: int = 0


def each(names: str, count: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), count)


STAGES = {"W": 2, "N1": 1, "N2": 1, "N3": 2, "R": 1}
EVENTS = each("spsw gped pled eyem artf bckg", 1)
STATED = {
    "mental-arithmetic": Stated(
        5.0, PAPER_20, 12, (0.0, 5.0), (each("rest stress", 4),) * 3, ("00 27", "28 31", "32 35")
    ),
    "mumtaz2016": Stated(
        *(5.0, PAPER_20, 63, (0.0,)),
        ({"control": 20, "depressed": 24}, {"control": 4, "depressed": 5}, {"control": 5, "depressed": 5}),
        (
            " ".join([f"H_S{number}" for number in range(1, 20)] + [f"MDD_S{number}" for number in range(1, 25)]),
            "H_S20 H_S21 H_S22 H_S23 MDD_S25 MDD_S26 MDD_S27 MDD_S28 MDD_S29",
            "H_S24 H_S25 H_S26 H_S27 H_S28 MDD_S30 MDD_S31 MDD_S32 MDD_S33 MDD_S34",
        ),
    ),
    "physionet-p300": Stated(
        *(2.0, PAPER_20, 12, (0.3, 0.45, 0.6, 0.75, 0.9)),
        ({"target": 10, "non-target": 20}, *({"target": 5, "non-target": 10},) * 2),
        ("01 03", "09", "11"),
        rejected=12,
    ),
    "sleep-edfx": Stated(
        *(30.0, SLEEP_2, 7, (0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.0)),
        ({name: 5 * count for name, count in STAGES.items()}, STAGES, STAGES),
        ("SC400 SC402 SC404 ST701", "SC403", "SC401"),
    ),
    "seed-v": Stated(
        *(1.0, SEED_V_17, 3, tuple(map(float, range(353, 418)))),
        (
            {"happy": 72, "fear": 96, "neutral": 237, "sad": 187, "disgust": 147},
            {"happy": 124, "fear": 189, "neutral": 66, "sad": 237, "disgust": 127},
            {"happy": 124, "fear": 65, "neutral": 165, "sad": 291, "disgust": 90},
        ),
        ("1", "9", "11"),
    ),
    "bcic-iv-2a": Stated(
        *(4.0, BCIC_16, 8, TRIAL_CUES),
        (each("left right feet tongue", 3), *(each("left right feet tongue", 2),) * 2),
        ("1 5", "6 7", "8 9"),
    ),
    "tuab": Stated(
        *(10.0, PAPER_20, 7, (0.0, 10.0)),
        ({"normal": 4, "pathological": 4}, {"normal": 2}, {"normal": 2, "pathological": 2}),
        ("aaaaaaaa bbbbbbbb cccccccc dddddddd", "eeeeeeee", "ffffffff gggggggg"),
    ),
    "tuev": Stated(
        *(5.0, PAPER_20, 6, (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)),
        (dict.fromkeys(EVENTS, 4), EVENTS, EVENTS),
        ("aaaaaaaa bbbbbbbb cccccccc dddddddd", "eeeeeeee", "000"),
        rejected=6,
    ),
}


def dealt(name: str, folder: Path) -> tuple[list[Examples], Parts]:
    preset = preset_called(name)
    found = examples(preset.recordings(folder), preset.rule(folder), preset.steps)
    return found, split(found, preset.split)


@pytest.mark.parametrize("name", PRESETS)
def test_what_the_paper_states(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    stated, steps = STATED[name], PRESETS[name].steps
    found, parts = dealt(name, tmp_path)
    for part, counts, subjects in zip(PARTS, stated.parts, stated.subjects, strict=True):
        assert Counter(label for one in parts[part] for label in one.labels) == counts, part
        assert sorted({one.subject.replace(" ", "_") for one in parts[part]}) == sorted(subjects.split()), part
    wanted = Montage.of(stated.channels)
    for one in found:
        assert one.source.windows.montage == wanted, "all channels, in the paper's order"
        assert one.source.windows.signal.shape[1:] == (len(stated.channels), stated.seconds * RATE)
    assert sum(map(len, (one.labels for ones in parts.values() for one in ones))) == sum(
        len(one.labels) for one in found
    )
    assert sum(len(one.source.windows.rejected) for one in found) == stated.rejected
    starts = found[0].source.windows.starts
    assert [start for start in stated.starts if min(abs(start - own) for own in starts) > 0.5 / RATE] == []
    assert not steps.rejects and Steps.of(steps.to_config()) == steps, "as a model's config keeps it"


@pytest.mark.parametrize("name", PRESETS)
def test_which_files_count(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    assert len(PRESETS[name].recordings(tmp_path)) == STATED[name].recordings
    shown = re.split(" and |, ", PRESETS[name].like)[0].strip("'")
    assert PRESETS[name].files.search(shown), "what a message shows is one"


def test_files_of_another_data_set(tmp_path: Path) -> None:
    write_tuev(tmp_path)
    with pytest.raises(InputError, match="no recording of tuab: they are like edf/train/abnormal/"):
        PRESETS["tuab"].recordings(tmp_path)
    with pytest.raises(InputError, match="'tuap' is no preset: mental-arithmetic, mumtaz2016, "):
        preset_called("tuap")


def test_formats_that_are_written_here(tmp_path: Path) -> None:
    """As MNE reads them: without this, the layouts above would be of no other program's files."""
    write_gdf(tmp_path / "x.gdf", ["EEG-Fz", "EEG", "EEG"], 3, 250, [(1.0, 768), (2.0, 771)])
    opened = load(tmp_path / "x.gdf")
    assert (opened.recording.names, opened.recording.rate) == (("EEG-Fz", "EEG-0", "EEG-1"), 250)
    np.testing.assert_allclose(opened.recording.signal, signal(3, 250, 3, 1), atol=0.06)
    assert [(event.onset, event.text) for event in opened.events] == [(1.0, "768"), (2.0, "771")]
    write_cnt(tmp_path / "x.cnt", ["FP1", "CB1"], 3, 1000)
    opened = load(tmp_path / "x.cnt")
    assert (opened.recording.names, opened.recording.rate) == (("FP1", "CB1"), 1000)
    np.testing.assert_allclose(opened.recording.signal, signal(3, 1000, 2, 2), atol=0.06)


def test_channels_that_have_numbers_for_names(tmp_path: Path) -> None:
    write_bcic(tmp_path)
    names = load(tmp_path / "A01T.gdf").recording.names
    wanted = "Fz FC3 FC1 FCz FC2 FC4 C5 C3 C1 Cz C2 C4 C6 CP3 CP1 CPz CP2 CP4 P1 Pz P2 POz"  # of the data set's figure
    assert [BCIC_NAMES[name] for name in names[:22]] == wanted.split()
    assert all(name not in BCIC_NAMES for name in names[22:]), "eyes"


def test_second_sessions_have_their_labels_elsewhere(tmp_path: Path) -> None:
    write_bcic(tmp_path)
    found, _ = dealt("bcic-iv-2a", tmp_path)
    labels = {one.source.path.stem: one.labels for one in found}
    assert labels["A01T"] == ("right", "left", "feet", "tongue")
    assert labels["A01E"] == ("tongue", "feet", "right", "left") and "A02E" not in labels
    preset, told = PRESETS["bcic-iv-2a"], list[tuple[str, str]]()
    files = [tmp_path / "A01T.gdf", tmp_path / "A02E.gdf"]
    examples(files, preset.rule(tmp_path), preset.steps, on_left_out=lambda path, why: told.append((path.name, why)))
    assert told == [("A02E.gdf", "A02E.mat, which says what was cued, is not in the folder")]
    for wrong, message in (([1, 2], "has 2 classes for 4 cues"), ([1, 2, 3, 5], "no 'classlabel' of 1 to 4")):
        io.savemat(tmp_path / "A02E.mat", {"classlabel": np.array(wrong)})
        with pytest.raises(InputError, match=message):
            dealt("bcic-iv-2a", tmp_path)


def test_nights_of_one_subject_stay_together(tmp_path: Path) -> None:
    write_sleep(tmp_path)
    _, parts = dealt("sleep-edfx", tmp_path)
    assert [len(parts[part]) for part in PARTS] == [5, 1, 1], "the first subject has two"
    (tmp_path / "SC" / "SC4031EC-Hypnogram.edf").rename(tmp_path / "SC" / "elsewhere")
    with pytest.raises(InputError, match=r"SC4031E0-PSG.edf: SC4031E\?-Hypnogram.edf is not beside it"):
        dealt("sleep-edfx", tmp_path)


def test_one_class_of_what_begins_at_one_time(tmp_path: Path) -> None:
    write_tuev(tmp_path)
    found, _ = dealt("tuev", tmp_path)
    assert found[0].labels == ("spsw", "gped", "pled", "eyem", "artf", "bckg"), "of equals the first; else most lines"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "00000001.rec beside it cannot be read"), ("1,2.0\n", "cannot be read"), ("1,2.0,3.0,7\n", "not 1 to 6")],
)
def test_lines_of_events_that_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    write_tuev(tmp_path)
    file = tmp_path / "edf" / "train" / "aaaaaaaa" / "aaaaaaaa_00000001.rec"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(InputError, match=message):
        dealt("tuev", tmp_path)


def test_trials_of_films_do_not_overlap() -> None:
    for begins, ends, shown in TRIALS.values():
        times = [time for trial in zip(begins, ends, strict=True) for time in trial]
        assert times == sorted(set(times)) and Counter(shown) == dict.fromkeys(range(5), 3)
