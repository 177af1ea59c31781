"""Bytes a second are of what was moved, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import bandwidth


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(3 << 20))
    return file


def test_all_are_measured_and_the_copy_is_removed(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "storage"
    folder.mkdir()
    before = checkpoint.read_bytes()
    found = bandwidth.bandwidths(checkpoint, folder)
    assert set(found) == {"memory_bytes_s", "cached_read_bytes_s", "write_bytes_s", "read_bytes_s"}
    assert all(speed is None or speed > 0 for speed in found.values())
    assert list(folder.iterdir()) == [] and checkpoint.read_bytes() == before


def test_where_the_page_cache_cannot_be_dropped_nothing_is_claimed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    written, read = bandwidth.storage(checkpoint, tmp_path)
    assert written > 0 and read is None


def test_speed_is_bytes_over_the_median_of_the_seconds(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repetition takes two readings of the clock: 1, 2, 3, 4 and 5 seconds."""
    readings = iter([0, 1, 0, 2, 0, 3, 0, 4, 0, 5] * 2)
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(readings))
    assert bandwidth.cached_read(checkpoint) == (3 << 20) / 3
    assert bandwidth.memory(3 << 10) == 2 * (3 << 10) / 3
