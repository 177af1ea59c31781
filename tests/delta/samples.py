"""A valid delta that uses every kind of tensor, as parts that a test can bend before they become a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from patchbay.architecture import Kind, TensorSpec
from patchbay.delta import Exceptions, Manifest, SparseRows
from patchbay.delta.encode import Streams
from patchbay.delta.file import MAX_MANIFEST, _pack_frame, frame_row
from patchbay.delta.frames import pack, unpack
from patchbay.delta.streams import Stream, plan_frames, stream_bounds
from patchbay.delta.version1 import PACKED

FINGERPRINT = f"sha256:{'ab' * 32}"
Parts = tuple[dict[str, Any], dict[Stream, bytes]]


def spec(name: str, shape: tuple[int, ...], dtype: str = "F32", *, is_head: bool = False) -> TensorSpec:
    matrix = len(shape) > 1
    kind = Kind.LINEAR if matrix else Kind.NORM
    return TensorSpec(name, name, shape, dtype, kind, 0 if matrix else None, (), is_head, is_vocabulary=matrix)


SPECS: Mapping[str, TensorSpec] = {
    s.name: s
    for s in (
        spec("attn.weight", (32, 16), "BF16"),
        spec("head.weight", (2, 64), is_head=True),
        spec("mlp.weight", (64, 60)),
        spec("norm.bias", (64,), "BF16"),
        spec("norm.weight", (64,)),
        spec("odd.weight", (5, 3)),
        spec("position_ids", (1, 7), "I64"),
        spec("untouched.weight", (8, 8)),
    )
}


def rows(shape: tuple[int, ...], count: int, seed: int = 0, scale: float = 1e-3) -> SparseRows:
    """`count` random entries with random values."""
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(int(np.prod(shape)), count, replace=False))
    values = generator.normal(0, scale, count).astype(np.float32)
    return SparseRows(shape, torch.from_numpy(chosen.astype(np.int32)), torch.from_numpy(values))


def sample_streams() -> Streams:
    generator = torch.Generator().manual_seed(0)
    streams = Streams()
    streams.add_sparse("mlp.weight", rows((64, 60), 200), "int8", torch.float32)
    streams.add_exceptions("mlp.weight", Exceptions(torch.tensor([0, 7, 3000]), torch.tensor([1.5, -2.5, 0.0])))
    own = torch.zeros(200, dtype=torch.bool)
    own[::40] = True
    streams.add_sparse("attn.weight", rows((32, 16), 200, 1), "sign_row", torch.bfloat16, own)
    streams.add_sparse("odd.weight", rows((5, 3), 9, 2), "fp32", torch.float32)
    streams.add_dense("norm.weight", torch.randn(64, generator=generator) * 1e-3, "fp32", torch.float32)
    streams.add_dense("norm.bias", torch.randn(64, generator=generator) * 1e-3, "int8", torch.bfloat16)
    streams.add_raw("head.weight", torch.randn(3, 64, generator=generator), copied=False)
    streams.add_raw("position_ids", torch.arange(7).reshape(1, 7), copied=True)
    return streams


def factored_streams() -> Streams:
    """The sample with a tensor stored as factors, and factors under the kept entries of another."""
    streams = sample_streams()
    streams.add_factors("mlp.weight", [(*factors(64, 60, 2), "int8"), (*factors(64, 60, 1, 1), "fp32")])
    streams.add_low_rank("untouched.weight", [(*factors(8, 8, 3, 2), "bf16")], torch.float32)
    return streams


def factors(rows: int, columns: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator) * 1e-2, torch.randn(columns, rank, generator=generator) * 1e-2


def manifest_fields(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that `write_delta` is given, as plain JSON values except for the entries."""
    return {
        "base": {"name": "pico", "fingerprint": FINGERPRINT},
        "compression": {"method": "magnitude", "density": 0.05, "params": {"values": "int8"}},
        "statistics": {"relative_error": 0.25, "sigma": 0.5},
        "provenance": {"finetuned": "pico-math", "tool": "patchbay 0", "original_bytes": 123456},
        "tensors": entries,
        "config": {"id2label": {"0": "cat", "1": "dog", "2": "owl"}},
        "labels": ("cat", "dog", "owl"),
        "tokens": ({"id": 96, "content": "<tool>", "special": True},),
    }


def sample() -> Parts:
    """A fresh manifest as JSON values, and the raw streams; both to be changed at will before `assemble`."""
    return parts(sample_streams())


def parts(streams: Streams) -> Parts:
    entries, data = streams.finish()
    bounds = stream_bounds(Manifest.model_validate(manifest_fields(entries) | versioned(2)))
    plain = {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in entries.items()}
    fields = json.loads(json.dumps(manifest_fields(plain)))
    unused = [bound - len(data[stream]) for stream, bound in bounds.items()]
    return {"format_version": 2, **fields, "unused": unused}, {stream: data[stream] for stream in bounds}


def versioned(version: int) -> dict[str, Any]:
    """What `write_delta` adds to a manifest's fields."""
    return {"format_version": version, "payload_sha256": f"sha256:{'0' * 64}"}


def replaced(stream: Stream, data: bytes, manifest: dict[str, Any], streams: dict[Stream, bytes]) -> Parts:
    """One stream's bytes exchanged, with `unused` telling the new length."""
    place = list(streams).index(stream)
    manifest["unused"][place] += len(streams[stream]) - len(data)
    return manifest, {**streams, stream: data}


def container(header: str | bytes | Mapping[str, Any], payload: bytes = b"", length: int | None = None) -> bytes:
    """The outer layer of a safetensors file, written by hand so that it can be wrong."""
    text = json.dumps(header) if isinstance(header, Mapping) else header
    data = text if isinstance(text, bytes) else text.encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data + payload


def row_header(rows: Mapping[str, bytes]) -> dict[str, Any]:
    header: dict[str, Any] = {}
    start = 0
    for name, data in sorted(rows.items()):
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [start, start + len(data)]}
        start += len(data)
    return header


def payload_of(rows: Mapping[str, bytes]) -> bytes:
    return b"".join(data for _, data in sorted(rows.items()))


def frames_of(streams: Mapping[Stream, bytes]) -> dict[str, bytes]:
    """The frames of raw streams, as the writer packs them."""
    planned = plan_frames({stream: len(data) for stream, data in streams.items()})
    return {frame_row(n): _pack_frame(frame, streams) for n, frame in enumerate(planned)}


def rows_of(manifest: Mapping[str, Any] | str, frames: Mapping[str, bytes]) -> dict[str, bytes]:
    """All rows of a file: the payload hash is right, unless the manifest is a text or brings its own."""
    if not isinstance(manifest, str):
        digest = f"sha256:{hashlib.sha256(payload_of(frames)).hexdigest()}"
        manifest = json.dumps({"payload_sha256": digest, **manifest})
    return {**frames, "manifest": pack(manifest.encode(), checksum=True)}


def assemble(manifest: Mapping[str, Any] | str, streams: Mapping[Stream, bytes]) -> bytes:
    """A file as an attacker would make it: consistent container and payload hash around any manifest and streams."""
    return enclose(rows_of(manifest, frames_of(streams)))


def enclose(rows: Mapping[str, bytes], marker: str = "2") -> bytes:
    return container({"__metadata__": {"patchbay": marker}, **row_header(rows)}, payload_of(rows))


def sample_version1() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The sample as version 1 wrote it: a frame a stream, scales before their codes, dense tensors in one frame."""
    manifest, streams = sample()
    del manifest["unused"]
    rows, dense = {}, {}
    for (kind, name, _), data in streams.items():
        if manifest["tensors"][name]["kind"] != "sparse" and not kind.startswith("exception"):
            dense[name] = data
        elif kind == "values":
            rows[f"{name}.values"] = pack(streams.get(Stream("scales", name), b"") + data)
        elif kind != "scales":
            rows[f"{name}.{kind}"] = pack(data)
    rows[PACKED] = pack(b"".join(dense[name] for name in sorted(dense)))
    return {**manifest, "format_version": 1}, rows


def assemble_version1(manifest: Mapping[str, Any] | str, rows: Mapping[str, bytes]) -> bytes:
    payload = payload_of(rows)
    if not isinstance(manifest, str):
        digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        manifest = json.dumps({"payload_sha256": digest, **manifest})
    return enclose(rows, manifest)


def edited(file: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A delta file whose manifest was changed by hand; frames and payload hash stay."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    rows = {name: file[start + first : start + last] for name, (first, last) in spans.items()}
    manifest = json.loads(unpack(rows["manifest"], MAX_MANIFEST))
    change(manifest)
    return enclose(rows_of(json.dumps(manifest), {name: rows[name] for name in rows if name != "manifest"}))
