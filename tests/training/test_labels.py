from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from patchbay.errors import InputError
from patchbay.models.neuript.edf import Event
from patchbay.models.neuript.recording import Recording
from patchbay.models.neuript.steps import Steps
from patchbay.training.files import Opened
from patchbay.training.labels import Marks, Span, by_annotations, by_table, only_with, starts_of, subject_of

EVENTS = (Event(0.0, 4.0, "T0"), Event(4.0, 4.1, "T1"), Event(8.1, None, "T2"))
OPENED = Opened(Recording(np.zeros((1, 1000)), 100.0, ("C3",), "uV"), EVENTS)
TWO = Steps(window_seconds=2.0)


def test_annotations_that_stand_for_classes(tmp_path: Path) -> None:
    marks = by_annotations(tmp_path, {"T1": "left", "T2": "right"})(tmp_path / "S001" / "x.edf", OPENED)
    assert marks == Marks("S001", (Span(4.0, 8.1, "left"), Span(8.1, 8.1, "right")))
    every = by_annotations(tmp_path, {})(tmp_path / "x.edf", OPENED)
    assert every is not None and [span.label for span in every.spans] == ["T0", "T1", "T2"]


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("x.edf", "a/y.edf", "z.edf"):
        (tmp_path / name).touch()
    table = tmp_path / "labels.tsv"
    table.write_text(
        "file\tlabel\tonset\tduration\tsubject\tpart\n"
        "x.edf\topen\t\t\tP7\ttest\na/y.edf\tleft\t1.5\t2\t\t\na/y.edf\tright\t4\t\t\t\n"
    )
    rule = by_table(table, tmp_path)
    assert rule(tmp_path / "x.edf", OPENED) == Marks("P7", (Span(0.0, None, "open"),), "test")
    assert rule(tmp_path / "a" / "y.edf", OPENED) == Marks("a", (Span(1.5, 3.5, "left"), Span(4.0, 4.0, "right")))
    assert rule(tmp_path / "z.edf", OPENED) is None, "the table does not know it"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_separators(tmp_path: Path, mark: str) -> None:
    """A spreadsheet's export, with a mark of its encoding and quotes, and a path as Windows writes it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.edf").touch()
    lines = [["File", "Label", "onset"], ["a\\x.edf", '"eyes open"', "1.5"]]
    text = "".join(mark.join(line) + "\r\n" for line in lines)
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    marks = by_table(tmp_path / "labels.csv", tmp_path)(tmp_path / "a" / "x.edf", OPENED)
    assert marks == Marks("a", (Span(1.5, 1.5, "eyes open"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\nx.edf,1\n", "lacks the column 'label': its columns are file, class; wanted are file and label"),
        ("file;klasse\nx.edf;1\n", "lacks the column 'label': its columns are file, klasse; wanted"),
        ("file label\nx.edf 1\n", "lacks the column 'file': its columns are file label; wanted"),
        ("file,label,colour\nx.edf,1,red\n", "has a column 'colour'"),
        ("", "lacks the column 'file': its columns are none"),
        ("file,label\n", "has no line below its header"),
        ("file,label\nx.edf,1\nx.edf,\n", "line 3, has no label"),
        ("file,label\nsub/deep/y.edf,1\n", "line 2, names sub/deep/y.edf, .*did you mean a/y.edf"),
        ("file,label\nX1.edf,1\n", "names X1.edf, which is not in .*; did you mean x.edf"),
        ("file,label\n/somewhere/else,1\n", "which is not in .*: files are named by their paths below it"),
        ("file,label,onset\nx.edf,1,soon\n", "line 2: onset and duration are seconds, as 1.5, and not onset 'soon'"),
        ("file;label;onset\nx.edf;1;1,5\n", "seconds, as 1.5, and not onset '1,5'"),
        ("file,label,onset,duration\nx.edf,1,0,-1\n", "onset and duration are seconds"),
        ("file,label,onset\nx.edf,1,nan\n", "onset and duration are seconds"),
        ("file,label,onset\nx.edf,1,2\nx.edf,1,10\n", "line 3: 10 s is outside of x.edf, which has 10 s"),
        ("file,label,onset\nx.edf,1,-2\n", "line 2: -2 s is outside of x.edf"),
        (
            "file,label,part\nx.edf,1,train\nx.edf,1,test\n",
            "line 3: x.edf is of the part 'test', and of 'train' in line 2",
        ),
        ("file,label,part\nx.edf,1,train\na/y.edf,1,\nx.edf,1,\n", "line 4: x.edf is of the part '', and of 'train'"),
        ("file,label,subject\nx.edf,1,A\nx.edf,1,B\n", "line 3: x.edf is of the subject 'B', and of 'A' in line 2"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    for name in ("x.edf", "a/y.edf"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        by_table(tmp_path / "labels.csv", tmp_path / "data")(tmp_path / "data" / "x.edf", OPENED)


def test_recordings_that_lack_a_channel(tmp_path: Path) -> None:
    rule = only_with(("EEG C3-REF", "Cz"), by_annotations(tmp_path, {}))
    with pytest.raises(InputError, match="it has no channel 'Cz'"):
        rule(tmp_path / "x.edf", OPENED)
    silent = Opened(OPENED.recording)
    assert rule(tmp_path / "x.edf", silent) == Marks("x", ()), "of which nothing is read"


def test_subjects_are_folders(tmp_path: Path) -> None:
    assert subject_of(tmp_path / "sub-01" / "eeg" / "x.edf", tmp_path) == "sub-01"
    assert subject_of(tmp_path / "x.edf", tmp_path) == "x"


def test_windows_fill_a_span() -> None:
    assert starts_of([Span(1.0, 7.5, "a")], 60.0, TWO) == {64: "a", 192: "a", 320: "a"}
    half = Steps(window_seconds=2.0, stride_seconds=0.5)
    assert list(starts_of([Span(1.0, 4.0, "a")], 60.0, half)) == [64, 96, 128]
    assert list(starts_of([Span(0.0, None, "a")], 5.0, TWO)) == [0, 128], "to the recording's end"
    assert list(starts_of([Span(0.0, 9.0, "a")], 5.0, TWO)) == [0, 128], "and not over it"
    assert starts_of([Span(0.0, 1.9, "a")], 60.0, TWO) == {}


def test_one_window_an_event() -> None:
    before = Steps(window_seconds=2.0, onset_seconds=-0.5)
    assert starts_of([Span(3.0, 3.0, "b"), Span(1.0, 9.0, "a")], 60.0, before) == {32: "a", 160: "b"}


def test_events_without_an_end_are_not_filled() -> None:
    with pytest.raises(InputError, match="'b' at 3 s has no duration: say where its window begins"):
        starts_of([Span(3.0, 3.0, "b")], 60.0, TWO)


def test_a_window_has_one_class() -> None:
    with pytest.raises(InputError, match="at 2 s both 'a' and 'b' are said"):
        starts_of([Span(0.0, 4.0, "a"), Span(2.0, 4.0, "b")], 60.0, TWO)
