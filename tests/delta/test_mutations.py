"""Random damage to valid files: they load to the same delta or raise a `DeltaError`, never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.delta.samples import (
    FINGERPRINT,
    SPECS,
    Parts,
    assemble,
    assemble_version1,
    factored_streams,
    parts,
    replaced,
    sample_streams,
    sample_version1,
)
from tests.delta.test_file import assert_equal, write_sample

from patchbay.delta import DeltaFile, read_delta
from patchbay.delta.encode import Streams
from patchbay.delta.streams import Stream
from patchbay.errors import DeltaError

MUTATIONS = 1000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "sample.safetensors"
    write_sample(path)
    return path


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


@pytest.mark.parametrize("version", [1, 2])
def test_a_mutated_header_is_refused_or_means_the_same_tensors(original: Path, tmp_path: Path, version: int) -> None:
    """Version 1 has texts there, which no rule knows; version 2 only what every other byte hangs on."""
    path = tmp_path / "mutated"
    data = original.read_bytes() if version == 2 else assemble_version1(*sample_version1())
    path.write_bytes(data)
    expected, loaded = read_delta(path, SPECS, FINGERPRINT), 0
    for mutated in mutations(data, 0, DeltaFile.open(path).header_bytes, 3):
        path.write_bytes(mutated)
        try:
            delta = read_delta(path, SPECS, FINGERPRINT)
        except DeltaError:
            continue
        assert_equal(delta, expected)
        assert sorted(map(bytes_of, delta.added.values())) == sorted(map(bytes_of, expected.added.values()))
        loaded += mutated.strip() != data.strip()
    assert bool(loaded) == (version == 1)


@pytest.mark.parametrize("make", [sample_streams, factored_streams])
def test_mutated_streams_under_a_matching_hash_are_refused_or_decode(
    tmp_path: Path, make: Callable[[], Streams]
) -> None:
    """What an attacker sends: the hash holds, so only the decoder's own checks are left."""
    generator, path, (fields, streams) = random.Random(4), tmp_path / "mutated", parts(make())
    for _ in range(MUTATIONS):
        manifest = {**fields, "unused": list(fields["unused"])}
        stream = generator.choice(sorted(streams))
        path.write_bytes(assemble(*mutated_stream(manifest, streams, stream, generator)))
        try:
            delta = read_delta(path, SPECS, FINGERPRINT)
        except DeltaError as error:
            assert error.param
            continue
        assert all(rows.positions.diff().gt(0).all() for rows in delta.matrices.values())
        for name in (*delta.matrices, *delta.factors):
            assert torch.isfinite(delta.difference(name)).all()


def mutated_stream(
    manifest: dict[str, Any], streams: dict[Stream, bytes], stream: Stream, generator: random.Random
) -> Parts:
    """One stream's bytes changed, and sometimes cut short with the manifest saying so."""
    data = bytearray(streams[stream])
    for _ in range(generator.randint(1, 3)):
        data[generator.randrange(len(data))] = generator.choice([0, 0x7F, 0x80, 0xFF, generator.randrange(256)])
    end = len(data) if generator.random() < 0.8 else generator.randrange(len(data))
    return replaced(stream, bytes(data[:end]), manifest, streams)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
