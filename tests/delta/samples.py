"""A valid delta that uses every kind of tensor, as parts that a test can bend before they become a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from patchbay.architecture import Kind, TensorSpec
from patchbay.delta import Exceptions, SparseRows
from patchbay.delta.encode import Streams

FINGERPRINT = f"sha256:{'ab' * 32}"
Parts = tuple[dict[str, Any], dict[str, bytes]]


def spec(name: str, shape: tuple[int, ...], dtype: str = "F32", *, is_head: bool = False) -> TensorSpec:
    matrix = len(shape) > 1
    kind = Kind.LINEAR if matrix else Kind.NORM
    return TensorSpec(name, name, shape, dtype, kind, 0 if matrix else None, (), is_head)


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
    """A fresh manifest as JSON values, and the streams; both to be changed at will before `assemble`."""
    entries, streams = sample_streams().finish()
    plain = {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in entries.items()}
    fields = json.loads(json.dumps(manifest_fields(plain)))
    return {"format_version": 1, **fields}, streams


def container(header: str | bytes | Mapping[str, Any], payload: bytes = b"", length: int | None = None) -> bytes:
    """The outer layer of a safetensors file, written by hand so that it can be wrong."""
    text = json.dumps(header) if isinstance(header, Mapping) else header
    data = text if isinstance(text, bytes) else text.encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data + payload


def stream_header(streams: Mapping[str, bytes]) -> dict[str, Any]:
    header: dict[str, Any] = {}
    start = 0
    for name, data in sorted(streams.items()):
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [start, start + len(data)]}
        start += len(data)
    return header


def payload_of(streams: Mapping[str, bytes]) -> bytes:
    return b"".join(data for _, data in sorted(streams.items()))


def assemble(manifest: Mapping[str, Any] | str, streams: Mapping[str, bytes]) -> bytes:
    """A file as an attacker would make it: consistent container and payload hash around any manifest and streams."""
    payload = payload_of(streams)
    if not isinstance(manifest, str):
        digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        manifest = json.dumps({"payload_sha256": digest, **manifest})
    return container({"__metadata__": {"patchbay": manifest}, **stream_header(streams)}, payload)
