from __future__ import annotations

import math
from pathlib import Path

import pytest

from patchbay.compress.search import Evaluation
from patchbay.errors import InputError
from patchbay_server.commands.search_record import SearchRecord

ONE, TWO, THREE = (Evaluation((0.1 * n, 1 / 3), -0.7 / n) for n in (1, 2, 3))


def written(file: Path, *evaluations: Evaluation) -> bytes:
    record = SearchRecord.open(file, "d")
    for evaluation in evaluations:
        record.add(evaluation)
    return file.read_bytes()


def test_what_was_added_is_read_back_exactly(tmp_path: Path) -> None:
    file = tmp_path / "r"
    assert SearchRecord.open(file, "d").history == () and not file.exists()
    odd = Evaluation((1.0,), -math.inf)
    written(file, ONE, TWO, odd)
    assert SearchRecord.open(file, "d").history == (ONE, TWO, odd)
    SearchRecord.open(file, "d").remove()
    assert not file.exists()


def test_cut_off_anywhere_it_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "r"
    data = written(file, ONE, TWO)
    ends = [number for number, byte in enumerate(data, 1) if byte == ord("\n")]
    for length in range(len(data)):
        file.write_bytes(data[:length])
        whole = sum(end <= length for end in ends) - 1
        assert SearchRecord.open(file, "d").history == (ONE, TWO)[: max(0, whole)]
        written(file, THREE)
        assert SearchRecord.open(file, "d").history == (*(ONE, TWO)[: max(0, whole)], THREE)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"mine\n", "no record"), (b"{}\n", "no record"), (b'{"kind": "patchbay search", "digest": "e"}\n', "options")],
)
def test_other_files_are_left_alone(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "r"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        SearchRecord.open(file, "d")
    assert file.read_bytes() == data
