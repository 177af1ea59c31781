"""Files of every format version ever published stay readable, and today's writer writes the same streams."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.golden.make import EXPECTED, FILE, FINGERPRINT, HERE, SPECS, build, flat, manifest
from tests.golden.plain_reader import PlainReader, floats

from patchbay.delta import DeltaFile, Manifest, read_delta
from patchbay.delta.codecs import POSITIONS, VALUES
from patchbay.delta.frames import unpack
from patchbay.delta.manifest import Dense, Sparse

LARGEST = 1 << 20


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes() if tensor.dtype != torch.bfloat16 else bits(tensor.view(torch.int16))


def test_the_stored_files_are_the_ones_that_were_published() -> None:
    listed = dict(line.split()[::-1] for line in (HERE / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {FILE.name, EXPECTED.name}
    for name, digest in listed.items():
        assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == digest


def test_it_decodes_to_the_stored_tensors_bit_for_bit() -> None:
    seen, expected = flat(read_delta(FILE, SPECS, FINGERPRINT)), load_file(EXPECTED)
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (seen[name].dtype, seen[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(seen[name]) == bits(tensor), name


def test_todays_writer_makes_the_same_streams() -> None:
    """Compared before zstd, whose output may change between versions of the library."""
    _, streams = build().finish()
    with safe_open(FILE, framework="np") as handle:
        assert set(handle.keys()) == set(streams)
        for name, frame in streams.items():
            assert unpack(frame, LARGEST) == unpack(handle.get_tensor(name).tobytes(), LARGEST), name


def test_todays_writer_makes_the_same_manifest() -> None:
    entries, _ = build().finish()
    stored = DeltaFile.open(FILE).manifest
    written = Manifest.model_validate(
        {**manifest(entries), "format_version": 1, "payload_sha256": stored.payload_sha256}
    )
    with safe_open(FILE, framework="np") as handle:
        assert json.loads(handle.metadata()["patchbay"]) == json.loads(written.to_json())


def test_it_uses_every_kind_and_encoding() -> None:
    entries = DeltaFile.open(FILE).manifest.tensors.values()
    sparse = [entry for entry in entries if isinstance(entry, Sparse)]
    dense = [entry for entry in entries if isinstance(entry, Dense)]
    assert {entry.positions for entry in sparse} == set(POSITIONS)
    assert {entry.values for entry in sparse} == set(VALUES)
    assert {entry.kind for entry in dense} == {"delta", "added", "copied"}
    assert {entry.values for entry in dense} == {"fp32", "bf16", "raw"}
    assert {e.exceptions.positions for e in entries if e.exceptions} == set(POSITIONS)
    assert any(entry.own for entry in sparse)
    assert any(0 in entry.shape for entry in sparse)
    assert any(entry.shape == () for entry in sparse)
    assert any(entry.count == 0 and 0 not in entry.shape for entry in sparse)


@pytest.mark.parametrize("field", sorted(Manifest.model_fields))
def test_it_carries_every_manifest_field(field: str) -> None:
    with safe_open(FILE, framework="np") as handle:
        assert json.loads(handle.metadata()["patchbay"]).get(field)


def test_a_decoder_written_from_the_specification_reads_the_same() -> None:
    reader, expected = PlainReader(FILE), load_file(EXPECTED)
    for name, entry in reader.manifest["tensors"].items():
        if entry["kind"] == "sparse":
            listed = list(reader.sparse(name))
            assert [p for p, _ in listed] == expected[f"matrices.{name}.positions"].tolist()
            assert [v for _, v in listed] == expected[f"matrices.{name}.values"].tolist(), name
        if "exceptions" in entry:
            positions, raw = reader.exceptions(name)
            assert positions == expected[f"exceptions.{name}.positions"].tolist()
            assert raw == bits(expected[f"exceptions.{name}.bits"]), name
    for name, raw in reader.dense():
        entry = reader.manifest["tensors"][name]
        if entry["kind"] == "delta":
            dtype = {"fp32": "F32", "bf16": "BF16"}[entry["values"]]
            assert floats(raw, dtype) == expected[f"vectors.{name}"].reshape(-1).tolist()
        else:
            assert raw == bits(expected[f"{entry['kind']}.{name}"]), name
