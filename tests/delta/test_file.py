from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from tests.delta.samples import (
    FINGERPRINT,
    SPECS,
    assemble,
    container,
    manifest_fields,
    payload_of,
    sample,
    sample_streams,
    stream_header,
)
from tests.delta.test_encode import assert_same

from patchbay.delta import Delta, DeltaFile, read_delta, write_delta
from patchbay.delta.frames import pack, unpack
from patchbay.errors import DeltaError, DeltaTooLarge, MalformedDelta, WrongBase

MUTATIONS = 1000


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
    assert_same({n: e.bits for n, e in left.exceptions.items()}, {n: e.bits for n, e in right.exceptions.items()})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "sample.safetensors"
    write_sample(path)
    return path


def test_round_trip(original: Path) -> None:
    delta = read_delta(original, SPECS, FINGERPRINT)
    entries, streams = sample_streams().finish()
    assert dict(delta.manifest.tensors) == entries
    assert delta.manifest.tokens[0].content == "<tool>"
    assert_same(delta.added, {"head.weight": delta.added["head.weight"]})
    assert delta.copied["position_ids"].tolist() == [list(range(7))]
    with safe_open(original, framework="np") as handle:  # an ordinary safetensors file
        assert set(handle.keys()) == set(streams)
        assert set(handle.metadata()) == {"patchbay"}


def test_equal_input_gives_equal_bytes(original: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == original.read_bytes()


def test_hand_made_files_are_what_the_writer_writes(original: Path) -> None:
    """The tests' own container differs from safetensors' only in the header's blanks and order."""
    header = DeltaFile.open(original).header_bytes
    assert original.read_bytes()[header:] == payload_of(sample()[1])


def test_num_bytes_is_the_files_size(original: Path) -> None:
    assert DeltaFile.open(original).num_bytes == original.stat().st_size


def test_the_payload_hash_is_over_everything_behind_the_header(original: Path) -> None:
    file = DeltaFile.open(original)
    digest = hashlib.sha256(original.read_bytes()[file.header_bytes :]).hexdigest()
    assert file.manifest.payload_sha256 == file.payload_sha256() == f"sha256:{digest}"
    file.check_payload()


def test_a_changed_payload_is_noticed(original: Path, tmp_path: Path) -> None:
    data = bytearray(original.read_bytes())
    data[-1] ^= 1
    (tmp_path / "bent").write_bytes(data)
    with pytest.raises(MalformedDelta, match="sha256"):
        DeltaFile.open(tmp_path / "bent").check_payload()


def test_opening_reads_the_header_only(tmp_path: Path) -> None:
    """A stream of 8 GiB that takes no space on the disk: opening reads kilobytes and maps nothing into memory."""
    manifest, streams = sample()
    header = stream_header(streams)
    end = max(entry["data_offsets"][1] for entry in header.values())
    name = "norm.weight.zz"  # sorts last among the streams, and the manifest does not name it
    header[name] = {"dtype": "U8", "shape": [8 << 30], "data_offsets": [end, end + (8 << 30)]}
    text = json.dumps({**manifest, "payload_sha256": f"sha256:{'0' * 64}"})
    path = tmp_path / "large"
    path.write_bytes(container({"__metadata__": {"patchbay": text}, **header}))
    os.truncate(path, path.stat().st_size + end + (8 << 30))
    read, peak = _bytes_read(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedDelta, match=f"'{name}' is not in the manifest"):  # the last of the header's checks
        DeltaFile.open(path)
    assert _bytes_read() - read < 64 << 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10  # KiB
    with pytest.raises(DeltaTooLarge, match="at most 1000"):
        DeltaFile.open(path, 1000)


def test_a_sound_header_over_a_blank_payload_opens(original: Path, tmp_path: Path) -> None:
    file = DeltaFile.open(original)
    data = original.read_bytes()[: file.header_bytes]
    (tmp_path / "blank").write_bytes(data.ljust(original.stat().st_size, b"\0"))
    assert DeltaFile.open(tmp_path / "blank").manifest == file.manifest


def test_the_base_is_checked_before_a_stream_is_decoded(original: Path, tmp_path: Path) -> None:
    file = DeltaFile.open(original)
    (tmp_path / "blank").write_bytes(original.read_bytes()[: file.header_bytes].ljust(original.stat().st_size, b"\0"))
    with pytest.raises(WrongBase):
        read_delta(tmp_path / "blank", SPECS, f"sha256:{'0' * 64}")


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


def mutations(data: bytes, start: int, end: int, seed: int) -> Iterator[bytes]:
    """One to three bytes between `start` and `end` overwritten, flipped, removed or put in."""
    generator = random.Random(seed)
    for _ in range(MUTATIONS):
        mutated = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(start, end)
            kind = generator.random()
            if kind < 0.45:
                mutated[at] = generator.randrange(256)
            elif kind < 0.9:
                mutated[at] ^= 1 << generator.randrange(8)
            elif kind < 0.95:
                del mutated[at]
            else:
                mutated.insert(at, generator.randrange(256))
        yield bytes(mutated)


def test_a_mutated_payload_is_refused(original: Path, tmp_path: Path) -> None:
    data, path = original.read_bytes(), tmp_path / "mutated"
    for mutated in mutations(data, DeltaFile.open(original).header_bytes, len(data), 1):
        path.write_bytes(mutated)
        if mutated != data:
            with pytest.raises(DeltaError):
                read_delta(path, SPECS, FINGERPRINT)


def test_a_mutated_header_is_refused_or_means_the_same_tensors(original: Path, tmp_path: Path) -> None:
    data, path = original.read_bytes(), tmp_path / "mutated"
    expected, loaded = read_delta(original, SPECS, FINGERPRINT), 0
    for mutated in mutations(data, 0, DeltaFile.open(original).header_bytes, 3):
        path.write_bytes(mutated)
        try:
            delta = read_delta(path, SPECS, FINGERPRINT)
        except DeltaError:
            continue
        assert_equal(delta, expected)
        assert sorted(map(bytes_of, delta.added.values())) == sorted(map(bytes_of, expected.added.values()))
        loaded += 1
    assert loaded  # a name or a number in the provenance


def test_mutated_streams_under_a_matching_hash_are_refused_or_decode(tmp_path: Path) -> None:
    """What an attacker sends: the hash holds, so only the decoder's own checks are left."""
    manifest, streams = sample()
    generator, path = random.Random(4), tmp_path / "mutated"
    for _ in range(MUTATIONS):
        name = generator.choice(sorted(streams))
        path.write_bytes(assemble(manifest, mutated_stream(streams, name, generator)))
        try:
            delta = read_delta(path, SPECS, FINGERPRINT)
        except DeltaError as error:
            assert error.param
            continue
        for rows in delta.matrices.values():
            assert rows.positions.diff().gt(0).all()
            assert torch.isfinite(rows.to_dense()).all()


def mutated_stream(streams: Mapping[str, bytes], name: str, generator: random.Random) -> dict[str, bytes]:
    """One stream's decoded bytes changed and packed again, or its frame itself."""
    from_frame = generator.random() < 0.3
    data = bytearray(streams[name] if from_frame else unpack(streams[name], 1 << 20))
    for _ in range(generator.randint(1, 3)):
        data[generator.randrange(len(data))] = generator.choice([0, 0x7F, 0x80, 0xFF, generator.randrange(256)])
    return {**streams, name: bytes(data) if from_frame else pack(bytes(data))}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _bytes_read() -> int:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])
