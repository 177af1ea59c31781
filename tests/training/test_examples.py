from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.training.recordings import write_edf, write_marked

from patchbay.errors import InputError
from patchbay.models.neuript.montage import Montage
from patchbay.models.neuript.preprocess import Windows
from patchbay.models.neuript.steps import RATE, Steps
from patchbay.training.examples import PARTS, Examples, Parts, Split, classes_of, examples, split, unlike
from patchbay.training.labels import Marks, Span, by_annotations
from patchbay.training.windows import Source

STEPS = Steps(window_seconds=2.0, rejects=False)


def made(subject: str, labels: str, *, stride: float = 1.0, seconds: float = 2.0, part: str | None = None) -> Examples:
    starts = tuple(stride * number for number in range(len(labels)))
    signal = torch.arange(len(labels))[:, None, None].expand(-1, 1, round(seconds * RATE)).float()
    cut = Windows(signal, starts, Montage.of(["Cz"]), (), {}, ())
    return Examples(Source(Path(subject), cut), tuple(labels), subject, part)


def counts(parts: Parts) -> list[int]:
    return [sum(len(one.labels) for one in parts[part]) for part in PARTS]


def test_windows_have_the_class_of_what_they_are_cut_from(tmp_path: Path) -> None:
    marked = write_marked(tmp_path / "x.edf", [(0, 10, "T0"), (10, 10, "T1"), (20, 5, "T2")])
    rule = by_annotations(tmp_path, {"T1": "left", "T2": "right"})
    (found,) = examples([marked, write_edf(tmp_path / "unmarked.edf")], rule, STEPS)
    assert found.labels == ("left",) * 5 + ("right",) * 2
    assert found.source.windows.starts == (10, 12, 14, 16, 18, 20, 22)
    assert classes_of([found]) == ("left", "right")


def test_channels_that_a_file_calls_otherwise(tmp_path: Path) -> None:
    names = {"EEG Fp1-REF": "Pz", "EEG Oz-REF": "Cz"}
    span = Marks("x", (Span(0.0, None, "a"),), names=names)
    (found,) = examples([write_edf(tmp_path / "x.edf", channels=2)], lambda *_: span, STEPS)
    assert [channel.name for channel in found.source.windows.montage.channels] == ["Pz", "Fp2"]


def test_a_window_that_is_rejected_has_no_class_either(tmp_path: Path) -> None:
    marked = write_marked(tmp_path / "x.edf", [(0, 20, "T1"), (20, 20, "T2")])
    loud = examples([marked], by_annotations(tmp_path, {}), Steps(window_seconds=2.0))[0]
    assert len(loud.labels) == len(loud.source.windows.signal) == len(loud.source.windows.starts) < 20
    expected = ["T1" if start < 20 else "T2" for start in loud.source.windows.starts]
    assert list(loud.labels) == expected


def test_without_any_class(tmp_path: Path) -> None:
    told: list[tuple[Path, str]] = []
    paths = [
        write_edf(tmp_path / "x.edf"),
        write_edf(tmp_path / "y.edf", seconds=1),
        write_marked(tmp_path / "z.edf", [(0, 1, "T1")]),
    ]
    with pytest.raises(InputError, match=r"no window has a class: the labels say nothing \(2 recordings\)"):
        examples(paths, by_annotations(tmp_path, {}), STEPS, on_left_out=lambda *one: told.append(one))
    assert [path.name for path, _ in told] == ["x.edf", "y.edf", "z.edf"]
    assert "nothing that is labelled is as long as a window of 2 s" in told[2][1]


def test_annotations_that_are_nowhere(tmp_path: Path) -> None:
    marked = write_marked(tmp_path / "x.edf", [(0, 10, "T0"), (10, 10, "T1"), (20, 5, "T0")])
    rule = by_annotations(tmp_path, {"T1": "left", "T7": "right"})
    message = r"no recording has an annotation 'T7': there are 'T0' \(2 times\), 'T1' \(1 times\)"
    with pytest.raises(InputError, match=message):
        examples([marked], rule, STEPS, annotations=("T1", "T7"))
    assert examples([marked], by_annotations(tmp_path, {"T1": "left"}), STEPS, annotations=("T1",))


def test_what_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "x.edf").write_bytes(b"hello")
    with pytest.raises(InputError) as caught:
        examples([tmp_path / "x.edf"], by_annotations(tmp_path, {}), STEPS)
    assert caught.value.message.count("x.edf") == 1


def test_the_end_of_every_recording_is_tested_on() -> None:
    parts = split([made("a", "xy" * 10, stride=2), made("b", "xy" * 5, stride=2)], Split(validation=0.2, test=0.3))
    assert counts(parts) == [15, 6, 9]
    for first, second, third in zip(*(parts[part] for part in PARTS), strict=True):
        times = [one.source.windows.starts for one in (first, second, third)]
        assert times[0][-1] < times[1][0] and times[1][-1] < times[2][0]


@given(st.integers(4, 60), st.floats(0, 0.4), st.floats(0.1, 0.5), st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_no_sample_is_in_two_parts(count: int, validation: float, test: float, stride: float) -> None:
    try:
        parts = split([made("a", "xy" * count, stride=stride)], Split(validation=validation, test=test))
    except InputError:
        return  # a class of which nothing is left
    ends = 0.0
    for part in PARTS:
        for one in parts[part]:
            assert one.source.windows.starts[0] >= ends - 1e-9
            ends = one.source.windows.starts[-1] + 2.0
    left_out = 2 * count - sum(counts(parts))
    assert left_out <= 2 * (2 / stride), "no more than overlaps"


def test_subjects_are_in_one_part() -> None:
    found = [made(f"S{number}", "xy", part=None) for number in range(1, 11) for _ in range(2)]
    parts = split(found, Split("subject", validation=0.2, test=0.3))
    names = [sorted({one.subject for one in parts[part]}) for part in PARTS]
    assert names == [["S1", "S2", "S3", "S4", "S5"], ["S6", "S7"], ["S10", "S8", "S9"]], "ten comes after nine"


def test_subjects_of_each_class_are_dealt_apart() -> None:
    ill, well = ([made(f"{kind}{number}", kind) for number in range(9)] for kind in "iw")
    how = Split("subject", counts={"i": (5, 2, 2), "w": (4, 2, 3)})
    parts = split([*ill, *well], how)
    numbers = {part: [sum(one.subject[0] == kind for one in parts[part]) for kind in "iw"] for part in PARTS}
    assert numbers == {"train": [5, 4], "validation": [2, 2], "test": [2, 3]}


def test_other_numbers_of_subjects_are_told_of() -> None:
    ill, well = ([made(f"{kind}{number}", kind) for number in range(9)] for kind in "iw")
    how = Split("subject", counts={"i": (5, 2, 2), "w": (4, 2, 3)})
    assert unlike([*ill, *well], how) == [] and unlike(well, Split("subject")) == []
    assert unlike([*ill[1:], *well], how) == ["8 subjects are i, not 9: they are split by shares"]


def test_which_subjects_there_are() -> None:
    with pytest.raises(InputError, match="a split by subject needs two, and there is 'S1', with 2 recordings"):
        split([made("S1", "xy"), made("S1", "yx")], Split("subject"))
    with pytest.raises(InputError) as caught:
        split([made("S1", "xx"), made("S2", "xx"), made("S3", "xxxyx")], Split("subject", 0.3, 0.3))
    assert "of the class 'y': there are in train:" in caught.value.message and "S1" in caught.value.message


def test_parts_that_the_labels_give() -> None:
    found = [made("a", "xy", part="train"), made("a", "xyx", part="test"), made("b", "yx", part="validation")]
    assert counts(split(found, Split("given"))) == [2, 2, 3]
    with pytest.raises(InputError, match="has the part None: it is train, validation, test"):
        split([*found, made("c", "x")], Split("given"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [("xxxxxxxxxx", "all windows are of the class 'x'"), ("xxxxxxxyyy", "of the train part is of the class 'y'")],
)
def test_classes_that_are_not_on_both_sides(labels: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split([made("a", labels, stride=2)], Split())
