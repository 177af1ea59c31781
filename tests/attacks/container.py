"""Files that are wrong before a manifest is looked at: foreign formats, headers, stream tables."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import safetensors.numpy
import torch
from tests.attacks.registry import attack
from tests.delta.samples import container, enclose, frames_of, payload_of, row_header, rows_of, sample

from patchbay.delta.container import MAX_HEADER
from patchbay.errors import DeltaTooLarge, MalformedDelta, UnsupportedFile

MAX_BYTES = 16 << 20  # the cap that the attacks are read with


def bent(change: dict[str, object], payload: bytes = b"") -> bytes:
    """The valid sample with header entries changed or added, and bytes appended."""
    rows = valid_rows()
    return container({"__metadata__": {"patchbay": "2"}, **row_header(rows), **change}, payload_of(rows) + payload)


def valid_rows() -> dict[str, bytes]:
    manifest, streams = sample()
    return rows_of(manifest, frames_of(streams))


def row(start: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


@attack(MalformedDelta, "no safetensors file")
def empty_file() -> bytes:
    """Nothing to read a length from."""
    return b""


@attack(MalformedDelta, "no safetensors file")
def short_file() -> bytes:
    """Shorter than the header's length field."""
    return b"\x10\0\0"


@attack(MalformedDelta, "no safetensors file")
def text_file() -> bytes:
    """A file picked by mistake: its first eight letters are an absurd length."""
    return b"Dear reader, this is a letter and no delta.\n" * 20


@attack(UnsupportedFile, "a pickle")
def pickle_file() -> bytes:
    """A pickle can run code when it is loaded."""
    return pickle.dumps({"w": [1.0, 2.0]})


@attack(UnsupportedFile, "a zip archive")
def torch_zip() -> bytes:
    """`torch.save` writes a zip with a pickle inside."""
    file = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, file)
    return file.getvalue()


@attack(UnsupportedFile, "a GGUF file")
def gguf() -> bytes:
    """Another format for weights."""
    return b"GGUF" + (3).to_bytes(4, "little") + bytes(64)


@attack(UnsupportedFile, "a gzip archive")
def gzip_file() -> bytes:
    """Compressed as a whole: would have to be inflated before any bound is known."""
    return b"\x1f\x8b\x08" + bytes(64)


@attack(MalformedDelta, "no manifest")
def plain_model() -> bytes:
    """A valid model.safetensors that is no delta."""
    return safetensors.numpy.save({"w": np.zeros((2, 2), np.float32)}, {"format": "pt"})


@attack(MalformedDelta, "breaks a rule of safetensors")
def long_text_for_offsets() -> bytes:
    """100,000 letters where a row's place is meant; the message must not carry them along."""
    return bent({"0000": {"dtype": "U8", "shape": [1], "data_offsets": "x" * 100_000}})


@attack(DeltaTooLarge, "file has 16777217 bytes")
def file_over_cap() -> bytes:
    """One byte more than the caller accepts: refused from its size alone."""
    return container("{}", b"\0").ljust(MAX_BYTES + 1, b"\0")


@attack(MalformedDelta, "no safetensors file")
def header_beyond_file() -> bytes:
    """A length that points behind the end."""
    return container("{}", length=1000)


@attack(MalformedDelta, "no safetensors file")
def header_of_length_zero() -> bytes:
    """Length 0 before a '{': "read the rest" would take the whole file as the header, however large."""
    return container('{"a":' + "0" * (5 << 20) + "}", length=0)


@attack(DeltaTooLarge, "header has 4194305 bytes")
def header_too_large() -> bytes:
    """A header of blanks, one byte over the limit."""
    return container("{}".ljust(MAX_HEADER + 1))


@attack(MalformedDelta, "header is not strict JSON")
def bad_utf8() -> bytes:
    """Bytes that no reader may guess at."""
    return container(b'{"\xff\xfe": 1}')


@attack(MalformedDelta, "header is not strict JSON")
def deep_nesting() -> bytes:
    """100,000 open brackets: a recursive parser overflows its stack."""
    return container('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


@attack(MalformedDelta, "duplicate key 'norm.bias'")
def duplicate_header_key() -> bytes:
    """Two readers would take different entries: a scanner sees one, a loader the other."""
    return container('{"norm.bias": {}, "norm.bias": {}}')


@attack(MalformedDelta, "duplicate key 'k99999'")
def late_duplicate_among_many() -> bytes:
    """100,000 keys, the last two equal: a search for the duplicate must not be quadratic."""
    keys = ",".join(f'"k{i}":0' for i in range(100_000))
    return container("{" + keys + ',"k99999":0}')


@attack(MalformedDelta, "keys; at most")
def too_many_keys() -> bytes:
    """300,000 keys in the header."""
    return container("{" + ",".join(f'"{i}":0' for i in range(300_000)) + "}")


@attack(MalformedDelta, "breaks a rule of safetensors")
def overlapping_offsets() -> bytes:
    """Two streams share bytes."""
    return bent({"zz": row(0, 4)})


@attack(MalformedDelta, "breaks a rule of safetensors")
def hole() -> bytes:
    """Bytes that belong to no stream could carry anything."""
    end = len(payload_of(valid_rows()))
    return bent({"zz": row(end + 8, end + 12)}, bytes(12))


@attack(MalformedDelta, "breaks a rule of safetensors")
def trailing_bytes() -> bytes:
    """Bytes behind the last stream."""
    return bent({}, b"more")


@attack(MalformedDelta, "breaks a rule of safetensors")
def truncated_payload() -> bytes:
    """An upload that was cut off."""
    return bent({})[:-1]


@attack(MalformedDelta, "breaks a rule of safetensors")
def offsets_overflow() -> bytes:
    """Offsets whose difference wraps around 64 bits."""
    return bent({"zz": {"dtype": "U8", "shape": [4], "data_offsets": [2**64 - 4, 0]}})


@attack(MalformedDelta, "'zz' is not a row of bytes")
def wrong_dtype() -> bytes:
    """A stream of floats."""
    return bent({"zz": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})


@attack(MalformedDelta, "'zz' is not a row of bytes")
def rank_2_stream() -> bytes:
    """A stream with two dimensions."""
    return bent({"zz": {"dtype": "U8", "shape": [2, 2], "data_offsets": [0, 4]}})


@attack(MalformedDelta, "'zz' is not a row of bytes")
def shape_is_no_list() -> bytes:
    """A shape that has no length, where a list is expected."""
    return bent({"zz": {"dtype": "U8", "shape": 4, "data_offsets": [0, 4]}})


@attack(MalformedDelta, "'zz' is not a row of bytes")
def shape_is_an_object() -> bytes:
    """A shape of length one that cannot be indexed by 0."""
    return bent({"zz": {"dtype": "U8", "shape": {"0": 4}, "data_offsets": [0, 4]}})


@attack(MalformedDelta, "'../../etc/passwd'")
def path_traversal_name() -> bytes:
    """A name that would climb out of a folder if anything ever wrote it as a file."""
    return bent({"../../etc/passwd": row(0, 0)})


@attack(MalformedDelta, r"'norm\x00.bias'")
def nul_in_name() -> bytes:
    """A name that ends early for whoever hands it to C."""
    return bent({"norm\0.bias": row(0, 0)})


@attack(DeltaTooLarge, "header has")
def empty_streams_200_000() -> bytes:
    """Each is legal and costs nothing to send; parsing them takes seconds."""
    return container({f"{i}": row(0, 0) for i in range(200_000)})


@attack(MalformedDelta, "frame '0' is not in the manifest")
def empty_streams_below_the_cap() -> bytes:
    """As many empty streams as a header may hold."""
    return enclose({**valid_rows(), **{f"{i:x}": b"" for i in range(60_000)}})


@attack(MalformedDelta, "no manifest")
def manifest_is_no_text() -> bytes:
    """An object where safetensors allows only text."""
    return container({"__metadata__": {"patchbay": {"format_version": 1}}})


@attack(MalformedDelta, "format version 3 is not known")
def future_container() -> bytes:
    """A version this reader was never told about, told by the header."""
    return enclose(valid_rows(), "3")


@attack(MalformedDelta, "a manifest of version 2 in a file of version 1")
def marker_is_a_manifest() -> bytes:
    """The text of version 2 where version 1 has it."""
    return enclose(valid_rows(), json.dumps({"format_version": 2}))
