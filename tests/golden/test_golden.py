"""Files of every format version ever published stay readable, and today's writer writes the same streams."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.golden.make import (
    EXPECTED,
    EXPECTED_VERSION_1,
    FILE,
    FILE_VERSION_1,
    FINGERPRINT,
    HERE,
    SEED,
    SPECS,
    build,
    flat,
    manifest,
)
from tests.golden.plain_reader import PlainReader, PlainReaderVersion1, philox

from patchbay.delta import DeltaFile, Manifest, read_delta, write_delta
from patchbay.delta.codecs import POSITIONS, VALUES
from patchbay.delta.file import MANIFEST_ROW
from patchbay.delta.frames import content_size, unpack_exactly
from patchbay.delta.manifest import Dense, LowRank, Sparse
from patchbay.delta.streams import KINDS

VERSIONS = [(FILE_VERSION_1, EXPECTED_VERSION_1), (FILE, EXPECTED)]
both = pytest.mark.parametrize(("file", "expected_file"), VERSIONS, ids=["version 1", "version 2"])


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes() if tensor.dtype != torch.bfloat16 else bits(tensor.view(torch.int16))


def test_the_stored_files_are_the_ones_that_were_published() -> None:
    listed = dict(line.split()[::-1] for line in (HERE / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {file.name for pair in VERSIONS for file in pair}
    for name, digest in listed.items():
        assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == digest


@both
def test_it_decodes_to_the_stored_tensors_bit_for_bit(file: Path, expected_file: Path) -> None:
    seen, expected = flat(read_delta(file, SPECS, FINGERPRINT)), load_file(expected_file)
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (seen[name].dtype, seen[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(seen[name]) == bits(tensor), name


def test_todays_writer_makes_the_same_streams_and_manifest(tmp_path: Path) -> None:
    """Compared before zstd, whose output may change between versions of the library."""
    entries, streams = build().finish()
    written = write_delta(tmp_path / "today", manifest(entries), streams)
    stored = DeltaFile.open(FILE)
    assert written.frames == stored.frames
    for row in stored.container.rows:
        before, after = unpacked(stored, row), unpacked(written, row)
        if row == MANIFEST_ROW:
            before, after = ({**json.loads(text), "payload_sha256": ""} for text in (before, after))
        assert before == after, row


def unpacked(file: DeltaFile, row: str) -> Any:
    frame = file.container.read(row)
    return unpack_exactly(frame, content_size(frame))


def test_it_uses_every_kind_and_encoding() -> None:
    file = DeltaFile.open(FILE)
    kinds = [kind for kind in KINDS if kind != "lossless"]  # which has a golden file of its own
    assert [frame.kind for frame in file.frames] == kinds
    entries = file.manifest.tensors.values()
    sparse = [entry for entry in entries if isinstance(entry, Sparse)]
    dense = [entry for entry in entries if isinstance(entry, Dense)]
    assert {entry.positions for entry in sparse} == set(POSITIONS)
    assert {entry.values for entry in sparse} == set(VALUES)
    assert {entry.kind for entry in dense} == {"delta", "added", "copied"}
    assert {entry.values for entry in dense} > {"fp32", "bf16", "raw", "int8", "int4", "sign_row"}
    assert [len(entry.bands) for entry in entries if isinstance(entry, LowRank)] == [3]
    assert [len(entry.bands) for entry in sparse if entry.bands] == [2]
    assert {e.exceptions.positions for e in entries if e.exceptions} == {"gap", "bitmask"}
    assert any(entry.own for entry in sparse)
    assert {entry.multiples for entry in sparse} == {1, 3, 20, 300}
    assert any(0 in entry.shape for entry in sparse)
    assert any(entry.shape == () for entry in sparse)
    assert any(entry.count == 0 and 0 not in entry.shape for entry in sparse)


@pytest.mark.parametrize("field", sorted(Manifest.model_fields))
def test_it_carries_every_manifest_field(field: str) -> None:
    assert json.loads(unpacked(DeltaFile.open(FILE), MANIFEST_ROW)).get(field)


def test_the_seeds_generator_is_the_one_of_the_specification() -> None:
    for seed in (0, 1, SEED):
        words = philox(seed)
        assert [next(words) for _ in range(9)] == np.random.Philox(key=seed).random_raw(9).tolist()


@both
def test_a_decoder_written_from_the_specification_reads_the_same(file: Path, expected_file: Path) -> None:
    reader = (PlainReaderVersion1 if file == FILE_VERSION_1 else PlainReader)(file)
    expected = load_file(expected_file)
    for name, entry in reader.manifest["tensors"].items():
        if entry["kind"] == "sparse":
            listed = list(reader.sparse(name))
            assert [p for p, _ in listed] == expected[f"matrices.{name}.positions"].tolist()
            assert [v for _, v in listed] == expected[f"matrices.{name}.values"].tolist(), name
        elif entry["kind"] == "delta":
            assert reader.whole(name) == expected[f"vectors.{name}"].reshape(-1).tolist(), name
        elif entry["kind"] != "low_rank":
            assert reader.raw(entry["kind"], name) == bits(expected[f"{entry['kind']}.{name}"]), name
        if "bands" in entry:
            assert reader.factored(name) == expected[f"differences.{name}"].reshape(-1).tolist(), name
        if "exceptions" in entry:
            positions, raw = reader.exceptions(name)
            assert positions == expected[f"exceptions.{name}.positions"].tolist()
            assert raw == bits(expected[f"exceptions.{name}.bits"]), name
        if "neurons" in entry:
            energy, cosine = reader.neurons(name)
            assert energy == expected[f"neurons.{name}.energy"].tolist()
            assert cosine == expected[f"neurons.{name}.cosine"].tolist()
        if "appended" in entry:
            assert reader.raw("appended", name) == bits(expected[f"appended.{name}"])
