from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.families.base import Case
from benchmarks.methods import METHODS, CannotReach, compress_to
from tests.long import long

from patchbay.delta import DeltaFile

ONE_SIZE = ("bitdelta", "lossless")
TARGETS = dict.fromkeys(METHODS, 24_000) | {"lossless": 400_000}


@pytest.fixture(scope="module")
def case(llama: Path, llama_tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    calibration = tmp_path_factory.mktemp("calibration") / "lines.txt"
    calibration.write_text("one line\nanother one\n")
    return Case("language", "pico", llama, llama_tuned, calibration, "sha256:0")


@pytest.mark.parametrize("name", METHODS)
def test_files_fill_the_size_they_may_have(name: str, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "d"
    report = compress_to(TARGETS[name], METHODS[name], case, out, 0)
    whole = name in ONE_SIZE or report.density == 1.0
    assert report.num_bytes <= TARGETS[name] and (whole or report.num_bytes >= 0.9 * TARGETS[name])
    assert out.stat().st_size == report.num_bytes == DeltaFile.open(out).num_bytes


def test_a_size_that_no_file_has_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(CannotReach, match="100 bytes are too few"):
        compress_to(100, METHODS["magnitude"], case, tmp_path / "d", 0)


def test_what_losing_nothing_takes_is_told_where_there_is_less(case: Case, tmp_path: Path) -> None:
    needed = compress_to(10**9, METHODS["lossless"], case, tmp_path / "d", 0).num_bytes
    with pytest.raises(CannotReach, match=f"the file takes {needed}") as caught:
        compress_to(needed - 1, METHODS["lossless"], case, tmp_path / "d", 0)
    assert caught.value.num_bytes == needed
    assert compress_to(needed, METHODS["lossless"], case, tmp_path / "d", 0).num_bytes == needed


def test_more_room_than_the_whole_difference_needs_is_left(case: Case, tmp_path: Path) -> None:
    report = compress_to(10**9, METHODS["magnitude"], case, tmp_path / "d", 0)
    assert report.density == 1.0


@long
def test_seeds_choose_for_methods_that_draw_alone(case: Case, tmp_path: Path) -> None:
    for name, method in METHODS.items():
        files = [tmp_path / f"{name}-{seed}" for seed in (0, 1)]
        for seed, file in enumerate(files):
            compress_to(TARGETS[name], method, case, file, seed)
        first, second = (DeltaFile.open(file).manifest.payload_sha256 for file in files)
        assert (first != second) == method.is_random, name
