"""FORMAT.md says what the code does: every field, name, limit, error and worked example is in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel, TypeAdapter

from patchbay import errors
from patchbay.delta import Manifest, container, entries, file, fits, frames, manifest, streams
from patchbay.delta.codecs import POSITIONS, VALUES
from patchbay.delta.codecs.affine import GROUP
from patchbay.delta.codecs.gap import ESCAPE
from patchbay.delta.codecs.grid import QUARTERS
from patchbay.delta.encode import Streams
from patchbay.delta.frames import MAGIC, pack, unpack_exactly
from patchbay.delta.lossless import encode_bits
from patchbay.delta.manifest import (
    Band,
    Base,
    Compression,
    Dense,
    Entries,
    LowRank,
    Provenance,
    Sparse,
    Statistics,
    Token,
)

TEXT = (Path(file.__file__).parents[2] / "FORMAT.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## \d+\. (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
LIMITS = {
    "MAX_HEADER": container.MAX_HEADER,
    "MAX_MANIFEST": file.MAX_MANIFEST,
    "MAX_KEYS": container.MAX_KEYS,
    "MAX_TENSORS": manifest.MAX_TENSORS,
    "MAX_STREAMS": manifest.MAX_STREAMS,
    "MAX_BANDS": entries.MAX_BANDS,
    "MAX_RANK": manifest.MAX_RANK,
    "MAX_DIM": manifest.MAX_DIM,
    "MAX_NUMEL": manifest.MAX_NUMEL,
    "MAX_ADDED_BYTES": fits.MAX_ADDED_BYTES,
    "MAX_WINDOW": frames.MAX_WINDOW,
}
NESTED: dict[str, type[BaseModel]] = {
    "base": Base,
    "compression": Compression,
    "statistics": Statistics,
    "provenance": Provenance,
    "tokens[]": Token,
}
ENTRY_FIELDS = {*Sparse.model_fields, *Dense.model_fields, *LowRank.model_fields}


def fields() -> list[str]:
    top = [name for name in Manifest.model_fields if name not in NESTED]
    return top + [f"{outer}.{name}" for outer, model in NESTED.items() for name in model.model_fields]


@pytest.mark.parametrize("field", fields())
def test_every_manifest_field_has_a_row(field: str) -> None:
    assert f"\n| `{field}` |" in SECTIONS["Manifest"]


@pytest.mark.parametrize("field", sorted(ENTRY_FIELDS | set(Entries.model_fields)))
def test_every_field_of_an_entry_has_a_row(field: str) -> None:
    assert f"\n| `{field}` |" in SECTIONS["Manifest"].partition("An entry of")[2]


def test_no_row_describes_a_field_that_is_gone() -> None:
    rows = set(re.findall(r"^\| `([\w.\[\]]+)` \|", SECTIONS["Manifest"], re.MULTILINE))
    assert rows == {*fields(), *ENTRY_FIELDS}
    assert all(f"`{{{', '.join(model.model_fields)}}}`" in TEXT for model in (Entries, Band))


@pytest.mark.parametrize(("name", "value"), LIMITS.items())
def test_limits_are_listed_with_their_values(name: str, value: int) -> None:
    assert f"| `{name}` | {value} |" in SECTIONS["The gate"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Compression, "params"),
        (Manifest, "config"),
        (Manifest, "config_removed"),
        (Manifest, "labels"),
        (Manifest, "tokens"),
    ],
)
def test_lengths_are_listed_with_their_values(model: type[BaseModel], name: str) -> None:
    [limit] = [part.max_length for part in model.model_fields[name].metadata if hasattr(part, "max_length")]
    assert f"| `{name}` | {limit} |" in SECTIONS["The gate"]


def test_patterns_are_the_codes() -> None:
    schema = Manifest.model_json_schema()["properties"]
    for pattern in (
        TypeAdapter(manifest.Name).json_schema()["pattern"],
        schema["prefix"]["pattern"],
        f"^{container._ROW_NAME.pattern}$",
    ):
        assert f"`{pattern[1:-1]}`" in TEXT
    assert schema["payload_sha256"]["pattern"] == "^sha256:[0-9a-f]{64}$"


def test_every_encoding_has_a_description_and_an_example() -> None:
    for section, registry in (("Position encodings", POSITIONS), ("Value encodings", VALUES)):
        for name in registry:
            assert f"**`{name}`**" in SECTIONS[section]
            assert f"\n| `{name}` |" in SECTIONS[section]


def test_kinds_dtypes_and_constants_are_named() -> None:
    entry = SECTIONS["Manifest"].partition("An entry of")[2]
    for name in (*manifest.DTYPES, "sparse", "delta", "low_rank", "lossless", "zigzag", "added", "copied", "raw"):
        assert f"`{name}`" in entry
    assert f"{ESCAPE} is an escape" in TEXT
    assert f"groups of {GROUP} consecutive values" in TEXT
    assert f"/ {VALUES['int8'].levels};" in TEXT and f"/ {VALUES['int4'].levels};" in TEXT
    assert all(f"`{constant:08x}`" in SECTIONS["Value encodings"] for constant in QUARTERS.view(np.uint32))
    assert f"`FRAME_BYTES` = {streams.FRAME_BYTES}" in SECTIONS["Frames"]
    assert MAGIC.hex(" ") in SECTIONS["Frames"]
    for levels in (frames.LEVELS, frames.SEARCHED_LEVELS):
        assert f"levels {levels[0]} and {levels[1]}" in SECTIONS["Frames"]
    assert f"`__metadata__.{container.METADATA_KEY}` is the text `{manifest.FORMAT_VERSION}`" in SECTIONS["Container"]


def test_the_gate_names_every_error_of_a_delta() -> None:
    named = set(re.findall(r"`([A-Z][a-z]\w+)`", SECTIONS["The gate"]))
    assert named == {error.__name__ for error in errors.DeltaError.__subclasses__()}


def test_the_example_manifest_is_one() -> None:
    [example] = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    parsed = Manifest.parse(example)
    assert json.loads(parsed.to_json()).keys() == json.loads(example).keys()
    assert len(streams.stream_lengths(parsed)) == len(parsed.unused)


def test_kinds_of_streams_are_described_in_their_order() -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \|", SECTIONS["Streams"], re.MULTILINE)) == streams.KINDS


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def test_position_examples() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d, ]+) of (\d+) \| `([0-9a-f ]*)` \|$", TEXT, re.MULTILINE)
    assert {row[0] for row in rows} == set(POSITIONS)
    for name, listed, total, data in rows:
        positions = np.array(numbers(listed), np.int64)
        codec = POSITIONS[name]
        if name != "seeded":
            assert codec.encode(positions, int(total)).hex(" ") == data
        assert np.array_equal(POSITIONS[name].decode(bytes.fromhex(data), len(positions), int(total)), positions)


def test_value_examples() -> None:
    pattern = r"^\| `(\w+)` \| \[(.+?)\]; (.+?); (.+?) \| `([0-9a-f ]+)` \|$"
    rows = re.findall(pattern, TEXT, re.MULTILINE)
    assert {row[0] for row in rows} == set(VALUES)
    for name, dims, listed, given, data in rows:
        shape, positions = tuple(map(int, numbers(dims))), np.array(numbers(listed), np.int64)
        assert VALUES[name].encode(np.array(numbers(given), np.float32), positions, shape).hex(" ") == data
    [log] = [bytes.fromhex(row[4]) for row in rows if row[0] == "sign_column_log"]
    decoded = VALUES["sign_column_log"].decode(log, np.array([0, 2, 4]), (2, 3)).tolist()
    assert decoded == pytest.approx([1.0606602, -3, 0.53033009], abs=1e-7)
    [int8] = [bytes.fromhex(row[4]) for row in rows if row[0] == "int8"]
    assert VALUES["int8"].decode(int8, np.arange(3), (3,)).tolist() == pytest.approx([0.5, -1, 0.7519685], abs=1e-7)


def test_the_example_of_a_lossless_tensor() -> None:
    [(base, tuned, codes, data)] = re.findall(
        r"base ([^`]+) and fine-tune ([^`]+) in `F32` are the codes ([\d, ]+) and the bytes `([0-9a-f ]+)`", TEXT
    )
    before, after = torch.tensor(numbers(base)), torch.tensor(numbers(tuned))
    assert encode_bits(before, after).tolist() == numbers(codes)
    made = Streams()
    made.add_lossless("w", before, after)
    assert made.streams[streams.Stream("lossless", "w")].hex(" ") == data


def test_the_example_stream_is_a_frame() -> None:
    [frame] = re.findall(r"as a whole frame: `([0-9a-f ]+)`", TEXT)
    assert unpack_exactly(bytes.fromhex(frame), 4) == bytes.fromhex("01 02 ff 00")
    assert len(pack(bytes.fromhex("01 02 ff 00"))) == len(bytes.fromhex(frame))
