"""The golden file of lossless tensors: it decodes to what it did, and a reader of the page alone sees the fine-tune."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from tests.golden.lossless import EXPECTED, FILE, SPECS, TENSORS, build, models
from tests.golden.make import FINGERPRINT, flat, manifest
from tests.golden.plain_reader import PlainReader
from tests.golden.test_golden import bits, unpacked

from patchbay.delta import DeltaFile, write_delta
from patchbay.delta.file import MANIFEST_ROW

SHA256 = {
    FILE: "93aab1b1538c03c2559945dd307e4b9946c8a34f2dcc860ce22e16ecacd34f50",
    EXPECTED: "d9d38cd53fd29bb2c936915fc60fa336646626d7015499ec7641ae99c34e260b",
}


def test_the_stored_files_are_the_ones_that_were_published() -> None:
    for file, digest in SHA256.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest


def test_it_decodes_to_the_stored_tensors_bit_for_bit() -> None:
    base, _ = models()
    delta = DeltaFile.open(FILE).load(SPECS, FINGERPRINT, finite=False, read_base=base.__getitem__)
    seen, expected = flat(delta), load_file(EXPECTED)
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (seen[name].dtype, seen[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(seen[name]) == bits(tensor), name


def test_todays_writer_makes_the_same_streams_and_manifest(tmp_path: Path) -> None:
    entries, streams = build().finish()
    written, stored = write_delta(tmp_path / "today", manifest(entries), streams), DeltaFile.open(FILE)
    assert written.frames == stored.frames
    for row in stored.container.rows:
        before, after = unpacked(stored, row), unpacked(written, row)
        if row == MANIFEST_ROW:
            before, after = ({**json.loads(text), "payload_sha256": ""} for text in (before, after))
        assert before == after, row


def test_a_decoder_written_from_the_specification_reads_the_fine_tune() -> None:
    reader, (base, tuned) = PlainReader(FILE), models()
    for name, _, old, new in TENSORS:
        before = base[name].float().to(new) if old != new else base[name]
        assert not np.isnan(before.double().numpy()).any()
        assert reader.lossless(name, bits(before)) == bits(tuned[name]), name
