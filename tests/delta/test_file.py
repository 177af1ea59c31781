from __future__ import annotations

import hashlib
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open
from tests.delta.samples import (
    FINGERPRINT,
    SPECS,
    assemble_version1,
    container,
    frames_of,
    manifest_fields,
    row_header,
    rows_of,
    sample,
    sample_streams,
    sample_version1,
)
from tests.delta.test_encode import assert_same

from patchbay.delta import Delta, DeltaFile, read_delta, write_delta
from patchbay.delta import streams as streams_module
from patchbay.errors import DeltaTooLarge, MalformedDelta, WrongBase


def write_sample(path: Path) -> DeltaFile:
    entries, streams = sample_streams().finish()
    return write_delta(path, manifest_fields(entries), streams)


def assert_equal(left: Delta, right: Delta) -> None:
    assert_same(left.vectors, right.vectors)
    assert_same(left.copied, right.copied)
    for field in ("positions", "values"):
        assert_same(
            {n: getattr(rows, field) for n, rows in left.matrices.items()},
            {n: getattr(rows, field) for n, rows in right.matrices.items()},
        )
    for factor in ("left", "right"):
        assert_same(
            {n: getattr(factors, factor) for n, factors in left.factors.items()},
            {n: getattr(factors, factor) for n, factors in right.factors.items()},
        )
    assert_same({n: e.bits for n, e in left.exceptions.items()}, {n: e.bits for n, e in right.exceptions.items()})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "sample.safetensors"
    write_sample(path)
    return path


def test_round_trip(original: Path) -> None:
    delta = read_delta(original, SPECS, FINGERPRINT)
    entries, _ = sample_streams().finish()
    assert dict(delta.manifest.tensors) == entries
    assert delta.manifest.tokens[0].content == "<tool>"
    assert_same(delta.added, {"head.weight": delta.added["head.weight"]})
    assert delta.copied["position_ids"].tolist() == [list(range(7))]
    with safe_open(original, framework="np") as handle:  # an ordinary safetensors file
        assert set(handle.keys()) == {"manifest", *(f"{n:04d}" for n in range(len(DeltaFile.open(original).frames)))}
        assert handle.metadata() == {"patchbay": "2"}


def test_equal_input_gives_equal_bytes(original: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == original.read_bytes()


def test_hand_made_files_are_what_the_writer_writes(original: Path) -> None:
    """The tests' own container differs from the writer's only in the header's blanks, order and the manifest's text."""
    file = DeltaFile.open(original)
    frames = b"".join(frames_of(sample()[1]).values())
    assert original.read_bytes()[file.header_bytes :].startswith(frames)
    assert len(frames) + file.header_bytes + file.container.rows["manifest"] == file.num_bytes


def test_a_file_of_version_1_means_the_same(original: Path, tmp_path: Path) -> None:
    path = tmp_path / "version1"
    path.write_bytes(assemble_version1(*sample_version1()))
    assert DeltaFile.open(path).manifest.format_version == 1
    expected = read_delta(original, SPECS, FINGERPRINT)
    read = read_delta(path, SPECS, FINGERPRINT)
    assert_equal(read, expected)
    assert_same(read.added, expected.added)


@pytest.mark.parametrize("version", [1, 2])
def test_items_sum_to_the_file(original: Path, tmp_path: Path, version: int) -> None:
    path = original
    if version == 1:
        path = tmp_path / "version1"
        path.write_bytes(assemble_version1(*sample_version1()))
    items = DeltaFile.open(path).itemised()
    assert sum(items.values()) == path.stat().st_size
    present = {"header", "positions", "values", "own", "exceptions"}
    present |= {"dense"} if version == 1 else {"manifest", "scales", "vectors", "added", "copied"}
    assert {item for item, size in items.items() if size} == present


def test_streams_of_a_kind_share_frames_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "FRAME_BYTES", 250)
    file = write_sample(tmp_path / "small")
    values = [frame for frame in file.frames if frame.kind == "values"]
    # attn.weight 24, mlp.weight 200, odd.weight 36: 224, then 36
    assert [sorted(stream.name for stream in frame.lengths) for frame in values] == [
        ["attn.weight", "mlp.weight"],
        ["odd.weight"],
    ]
    assert all(frame.num_bytes <= 250 or len(frame.lengths) == 1 for frame in file.frames)
    expected = tmp_path / "expected"
    delta = read_delta(file.path, SPECS, FINGERPRINT)
    monkeypatch.undo()
    write_sample(expected)
    assert_equal(delta, read_delta(expected, SPECS, FINGERPRINT))


def test_num_bytes_is_the_files_size(original: Path) -> None:
    assert DeltaFile.open(original).num_bytes == original.stat().st_size


def test_the_payload_hash_is_over_everything_between_header_and_manifest(original: Path) -> None:
    file = DeltaFile.open(original)
    end = file.num_bytes - file.container.rows["manifest"]
    digest = hashlib.sha256(original.read_bytes()[file.header_bytes : end]).hexdigest()
    assert file.manifest.payload_sha256 == file.payload_sha256() == f"sha256:{digest}"
    file.check_payload()


def test_a_changed_payload_is_noticed(original: Path, tmp_path: Path) -> None:
    data = bytearray(original.read_bytes())
    data[DeltaFile.open(original).header_bytes + 20] ^= 1
    (tmp_path / "bent").write_bytes(data)
    with pytest.raises(MalformedDelta, match="sha256"):
        DeltaFile.open(tmp_path / "bent").check_payload()


def test_opening_reads_header_and_manifest_only(tmp_path: Path) -> None:
    """A frame of 8 GiB that takes no space on the disk: opening reads kilobytes and maps nothing into memory."""
    manifest, streams = sample()
    rows = rows_of(manifest, frames_of(streams))
    header = row_header(rows)
    name = "0000.zz"  # no frame of the manifest; it lies behind all others
    end = header["manifest"]["data_offsets"][1]
    header[name] = {"dtype": "U8", "shape": [8 << 30], "data_offsets": [end, end + (8 << 30)]}
    path = tmp_path / "large"
    path.write_bytes(container({"__metadata__": {"patchbay": "2"}, **header}, b"".join(rows.values())))
    os.truncate(path, path.stat().st_size + (8 << 30))
    read, peak = _bytes_read(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedDelta, match=f"'{name}' is not in the manifest"):  # the last of the checks
        DeltaFile.open(path)
    assert _bytes_read() - read < 64 << 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10  # KiB
    with pytest.raises(DeltaTooLarge, match="at most 1000"):
        DeltaFile.open(path, 1000)


def blanked(original: Path, path: Path) -> Path:
    """The header and the manifest over zeros."""
    file = DeltaFile.open(original)
    data = original.read_bytes()
    frames = file.num_bytes - file.header_bytes - file.container.rows["manifest"]
    path.write_bytes(data[: file.header_bytes] + bytes(frames) + data[file.header_bytes + frames :])
    return path


def test_a_sound_manifest_over_blank_frames_opens(original: Path, tmp_path: Path) -> None:
    assert DeltaFile.open(blanked(original, tmp_path / "blank")).manifest == DeltaFile.open(original).manifest


def test_the_base_is_checked_before_a_stream_is_decoded(original: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongBase):
        read_delta(blanked(original, tmp_path / "blank"), SPECS, f"sha256:{'0' * 64}")


def test_every_damaged_byte_of_the_manifest_is_noticed(original: Path, tmp_path: Path) -> None:
    """No hash covers the manifest: its frame carries a checksum instead."""
    file, data = DeltaFile.open(original), original.read_bytes()
    path = tmp_path / "bent"
    for at in range(file.num_bytes - file.container.rows["manifest"], file.num_bytes, 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(MalformedDelta, match="manifest"):
            DeltaFile.open(path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(1000), pytest.raises((OSError, SafetensorError)):
        write_sample(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "delta"
    path.write_bytes(b"before")
    with largest_file(1000), pytest.raises((OSError, SafetensorError)):
        write_sample(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_sample(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_written_file_replaces_another_and_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "delta"
    write_sample(path)
    write_sample(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_delta_without_changes_is_a_file_too(tmp_path: Path) -> None:
    file = write_delta(tmp_path / "none", manifest_fields({}), {})
    delta = read_delta(file.path, SPECS, FINGERPRINT)
    assert not delta.matrices
    assert delta.num_bytes == 0


def _bytes_read() -> int:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])
