"""FORMAT.md says what the code does: every field, name, limit, error and worked example is in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, TypeAdapter

from patchbay import errors
from patchbay.delta import Manifest, decode, file, frames, manifest
from patchbay.delta.codecs import POSITIONS, VALUES
from patchbay.delta.codecs.gap import ESCAPE
from patchbay.delta.codecs.int8 import GROUP, LEVELS
from patchbay.delta.decode import stream_names
from patchbay.delta.frames import MAGIC, pack, unpack
from patchbay.delta.manifest import Base, Compression, Dense, Entries, Provenance, Sparse, Statistics, Token

TEXT = (Path(file.__file__).parents[2] / "FORMAT.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## \d+\. (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
LIMITS = {
    "MAX_HEADER": file.MAX_HEADER,
    "MAX_KEYS": file.MAX_KEYS,
    "MAX_TENSORS": manifest.MAX_TENSORS,
    "MAX_RANK": manifest.MAX_RANK,
    "MAX_DIM": manifest.MAX_DIM,
    "MAX_NUMEL": manifest.MAX_NUMEL,
    "MAX_ADDED_BYTES": decode.MAX_ADDED_BYTES,
    "MAX_WINDOW": frames.MAX_WINDOW,
}
NESTED: dict[str, type[BaseModel]] = {
    "base": Base,
    "compression": Compression,
    "statistics": Statistics,
    "provenance": Provenance,
    "tokens[]": Token,
}


def fields() -> list[str]:
    top = [name for name in Manifest.model_fields if name not in NESTED]
    return top + [f"{outer}.{name}" for outer, model in NESTED.items() for name in model.model_fields]


@pytest.mark.parametrize("field", fields())
def test_every_manifest_field_has_a_row(field: str) -> None:
    assert f"\n| `{field}` |" in SECTIONS["Manifest"]


@pytest.mark.parametrize("field", sorted({*Sparse.model_fields, *Dense.model_fields, *Entries.model_fields}))
def test_every_field_of_an_entry_has_a_row(field: str) -> None:
    assert f"\n| `{field}` |" in SECTIONS["Manifest"].partition("An entry of")[2]


def test_no_row_describes_a_field_that_is_gone() -> None:
    rows = set(re.findall(r"^\| `([\w.\[\]]+)` \|", SECTIONS["Manifest"], re.MULTILINE))
    assert rows == {*fields(), *Sparse.model_fields, *Dense.model_fields}


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
        f"^{file._STREAM_NAME.pattern}$",
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
    for name in (*manifest.DTYPES, "sparse", "delta", "added", "copied", "fp32", "bf16", "raw"):
        assert f"`{name}`" in entry
    assert f"{ESCAPE} is an escape" in TEXT
    assert f"groups of {GROUP} consecutive values" in TEXT
    assert f"/ {LEVELS};" in TEXT
    assert MAGIC.hex(" ") in SECTIONS["Frames"]
    assert f"level {frames.LEVEL}" in SECTIONS["Frames"]
    assert f"`__metadata__.{file.METADATA_KEY}`" in SECTIONS["Container"]


def test_the_gate_names_every_error_of_a_delta() -> None:
    named = set(re.findall(r"`([A-Z][a-z]\w+)`", SECTIONS["The gate"]))
    assert named == {error.__name__ for error in errors.DeltaError.__subclasses__()}


def test_the_example_manifest_is_one_and_its_streams_are_described() -> None:
    [example] = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    parsed = Manifest.parse(example)
    assert json.loads(parsed.to_json()).keys() == json.loads(example).keys()
    entry = Sparse(
        kind="sparse",
        shape=(1,),
        dtype="F32",
        count=0,
        positions="gap",
        values="bf16",
        own=Entries(count=0, positions="gap"),
        exceptions=Entries(count=0, positions="gap"),
    )
    whole = parsed.model_copy(update={"tensors": {"w": entry, **parsed.tensors}})
    for name in stream_names(whole):
        suffix = name.rpartition(".")[2]
        assert f"\n| `<name>.{suffix}` |" in SECTIONS["Streams"] or f"\n| `{name}` |" in SECTIONS["Streams"]


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def test_position_examples() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d, ]+) of (\d+) \| `([0-9a-f ]+)` \|$", TEXT, re.MULTILINE)
    assert {row[0] for row in rows} == set(POSITIONS)
    for name, listed, total, data in rows:
        positions = np.array(numbers(listed), np.int64)
        assert POSITIONS[name].encode(positions, int(total)).hex(" ") == data
        assert np.array_equal(POSITIONS[name].decode(bytes.fromhex(data), len(positions), int(total)), positions)


def test_value_examples() -> None:
    pattern = r"^\| `(\w+)` \| \[(.+?)\]; (.+?); (.+?) \| `([0-9a-f ]+)` \|$"
    rows = re.findall(pattern, TEXT, re.MULTILINE)
    assert {row[0] for row in rows} == set(VALUES)
    for name, dims, listed, given, data in rows:
        shape, positions = tuple(map(int, numbers(dims))), np.array(numbers(listed), np.int64)
        assert VALUES[name].encode(np.array(numbers(given), np.float32), positions, shape).hex(" ") == data
    [int8] = [bytes.fromhex(row[4]) for row in rows if row[0] == "int8"]
    assert VALUES["int8"].decode(int8, np.arange(3), (3,)).tolist() == pytest.approx([0.5, -1, 0.7519685], abs=1e-7)


def test_the_example_stream_is_a_frame() -> None:
    [frame] = re.findall(r"as a whole stream: `([0-9a-f ]+)`", TEXT)
    assert unpack(bytes.fromhex(frame), 4) == bytes.fromhex("01 02 ff 00")
    assert len(pack(bytes.fromhex("01 02 ff 00"))) == len(bytes.fromhex(frame))
