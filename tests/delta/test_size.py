"""A file's positions and values take what entropy asks for, and what surrounds them takes little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.delta.samples import manifest_fields

from patchbay.delta import SparseRows, write_delta
from patchbay.delta.encode import Streams

SHAPE = (1000, 1000)
BITS = {"sign_tensor": 1, "int8": 8 + 32 / 128, "int4": 4 + 32 / 128}  # a value, with its share of the scales


def entropy(density: float) -> float:
    return float(-density * np.log2(density) - (1 - density) * np.log2(1 - density))


@pytest.mark.parametrize("density", [0.005, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("values", BITS)
def test_positions_and_values_are_within_2_percent_of_their_entropy(
    tmp_path: Path, density: float, values: str
) -> None:
    generator = np.random.default_rng(0)
    total = SHAPE[0] * SHAPE[1]
    where = np.sort(generator.choice(total, round(density * total), replace=False)).astype(np.int32)
    kept = torch.from_numpy(generator.normal(0, 1e-3, len(where)).astype(np.float32))
    streams = Streams()
    streams.add_sparse("w", SparseRows(SHAPE, torch.from_numpy(where), kept), values, torch.bfloat16)
    entries, data = streams.finish()
    file = write_delta(tmp_path / "x", manifest_fields(entries), data)
    items = file.itemised()
    body = file.num_bytes - items["header"] - items["manifest"]
    bound = (entropy(density) + BITS[values] * density) * total / 8
    assert body <= 1.02 * bound


def test_the_container_of_a_small_model_is_small(tmp_path: Path) -> None:
    """150 tensors as MiniLM has them: header and manifest take under 4 kB, 42 kB in version 1."""
    streams = Streams()
    generator = np.random.default_rng(0)
    for layer in range(6):
        for part, shape in MATRICES.items():
            total = shape[0] * shape[1]
            where = np.sort(generator.choice(total, total // 300, replace=False)).astype(np.int32)
            rows = SparseRows(shape, torch.from_numpy(where), torch.ones(len(where)))
            streams.add_sparse(f"encoder.layer.{layer}.{part}.weight", rows, "sign_column_log", torch.float32)
            streams.add_whole(f"encoder.layer.{layer}.{part}.bias", torch.ones(shape[0]), "int4", torch.float32)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            for which in ("weight", "bias"):
                streams.add_whole(f"encoder.layer.{layer}.{norm}.{which}", torch.ones(384), "int4", torch.float32)
    entries, data = streams.finish()
    items = write_delta(tmp_path / "x", manifest_fields(entries), data).itemised()
    assert items["header"] + items["manifest"] < 4096


MATRICES = {
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (1536, 384),
    "output.dense": (384, 1536),
}
