"""Makes the golden file of format version 2 and what it must decode to. A program; run once per format version:

    PYTHONPATH=core:. python -m tests.golden.make

Every number follows from a formula, so that the parts can be made again and compared on any machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.delta.samples import spec

from patchbay.architecture import TensorSpec
from patchbay.delta import Delta, Exceptions, SparseRows, read_delta, write_delta
from patchbay.delta.codecs import seeded_positions
from patchbay.delta.encode import Streams

HERE = Path(__file__).parent
FILE = HERE / "delta_v2.safetensors"
EXPECTED = HERE / "delta_v2.expected.safetensors"
# Written when version 1 was today's; nothing makes them again.
FILE_VERSION_1 = HERE / "delta_v1.safetensors"
EXPECTED_VERSION_1 = HERE / "delta_v1.expected.safetensors"
FINGERPRINT = f"sha256:{'5a' * 32}"

# name, shape, every how manieth entry is kept, encoding of the values, dtype of the fine-tune
SPARSE = (
    ("gap.fp32", (6, 100), 300, "fp32", torch.float32),  # two entries, gaps beyond 255
    ("gap.bf16", (20, 30), 7, "bf16", torch.bfloat16),
    ("gap.int8", (40, 50), 6, "int8", torch.float32),  # 334 values: three groups
    ("gap.sign_tensor", (20, 30), 11, "sign_tensor", torch.bfloat16),
    ("gap.sign_row", (20, 30), 11, "sign_row", torch.bfloat16),
    ("gap.sign_column", (4, 5, 6), 9, "sign_column", torch.float16),
    ("bitmask.fp32", (7, 9), 1, "fp32", torch.float64),  # all entries
    ("bitmask.bf16", (7, 9), 3, "bf16", torch.bfloat16),
    ("bitmask.int8", (20, 20), 2, "int8", torch.float32),
    ("bitmask.sign_row", (13, 7), 4, "sign_row", torch.float32),
    ("empty.int8", (3, 0), 1, "int8", torch.float32),
    ("nothing.kept", (3, 4), 13, "sign_row", torch.float32),
    ("scalar.fp32", (), 1, "fp32", torch.float32),
)
SPARSE_2 = (
    ("all.bf16", (5, 8), 1, "bf16", torch.bfloat16),
    ("gap.int4", (40, 50), 6, "int4", torch.float32),  # 334 values, three groups
    ("gap.int4_odd", (9, 9), 5, "int4", torch.float32),
    ("gap.levels", (20, 30), 7, "levels", torch.bfloat16),
    ("bitmask.levels", (20, 30), 2, "levels", torch.bfloat16),
    ("gap.sign_column_log", (20, 30), 11, "sign_column_log", torch.bfloat16),
)
# name, shape, every how manieth entry is kept, encoding, how many multiples of one value there are
MULTIPLES = (
    ("times3.sign_tensor", (20, 30), 4, "sign_tensor", 3),
    ("times20.sign_column_log", (20, 30), 3, "sign_column_log", 20),
    ("times300.sign_row", (20, 30), 2, "sign_row", 300),
)
SEED = 2**63 + 12345
SEEDED = ("seeded.sign_tensor", (33, 61), 150)
WHOLE = (  # differences stored whole, in other encodings than floats
    ("whole.int8", (300,), "int8"),
    ("whole.int4", (129,), "int4"),
    ("whole.sign_row", (6, 50), "sign_row"),
    ("whole.sign_column_log", (6, 50), "sign_column_log"),
)
BANDS = ((3, "bf16"), (2, "int8"), (4, "int4"))
HYBRID = ("hybrid", (20, 30), 9, "int8")  # kept entries over a low-rank difference
HYBRID_BANDS = ((2, "bf16"), (3, "int4"))
OWN = ("gap.sign_row", "bitmask.sign_row", "gap.sign_tensor")
SPECS: Mapping[str, TensorSpec] = {
    s.name: s
    for s in (
        *(spec(name, shape, "BF16") for name, shape, *_ in SPARSE),
        spec("dense.fp32", (11,)),
        spec("dense.bf16", (3, 4), "BF16"),
        spec("copied.int64", (1, 9), "I64"),
        spec("copied.bool", (5,), "BOOL"),
        spec("head.weight", (2, 4), is_head=True),
        *(spec(name, shape) for name, shape, *_ in (*SPARSE_2, *MULTIPLES, SEEDED, *WHOLE)),
        spec("low_rank", (30, 20), "BF16"),
        spec("hybrid", (20, 30), "BF16"),
        spec("grown.weight", (7, 3), "F16"),
    )
}


def numbers(count: int) -> torch.Tensor:
    """Mixed signs over a few binary orders of magnitude; exact in fp32."""
    index = torch.arange(count, dtype=torch.float32)
    mantissa = (index * 37 + 11) % 101 - 50
    return (mantissa + 0.5) * torch.pow(2.0, -(index % 5) - 12)


def few(count: int, num_levels: int) -> torch.Tensor:
    """At most `num_levels` magnitudes, both signs."""
    index = torch.arange(count)
    return (index % num_levels + 1) / 8 * torch.where(index % 3 == 0, -1.0, 1.0)


def build() -> Streams:
    streams = Streams()
    for name, shape, every, values, dtype in (*SPARSE, *SPARSE_2):
        positions = torch.arange(torch.Size(shape).numel(), dtype=torch.int32)[every % 5 :: every]
        own = torch.arange(len(positions)) % 10 == 3 if name in OWN else None
        kept = few(len(positions), every) if values == "levels" else numbers(len(positions))
        streams.add_sparse(name, SparseRows(shape, positions, kept), values, dtype, own)
    streams.add_dense("dense.fp32", numbers(11), "fp32", torch.float32)
    streams.add_dense("dense.bf16", numbers(12).reshape(3, 4), "int8", torch.bfloat16)
    streams.add_raw("head.weight", numbers(20).reshape(5, 4).to(torch.float16), copied=False)
    streams.add_raw("copied.int64", torch.arange(9).reshape(1, 9) * 1_000_003, copied=True)
    streams.add_raw("copied.bool", torch.tensor([True, False, True, True, False]), copied=True)
    streams.add_exceptions("gap.fp32", Exceptions(torch.tensor([0, 1, 599]), torch.tensor([1.5, -0.0, 3e38])))
    streams.add_exceptions("gap.bf16", Exceptions(torch.arange(0, 600, 2), numbers(300).to(torch.bfloat16)))
    streams.add_exceptions("bitmask.fp32", Exceptions(torch.tensor([62]), torch.tensor([1e-300], dtype=torch.float64)))
    streams.add_exceptions("dense.bf16", Exceptions(torch.tensor([5]), torch.tensor([2.0], dtype=torch.bfloat16)))
    add_what_version_2_brought(streams)
    return streams


def add_what_version_2_brought(streams: Streams) -> None:
    name, shape, count = SEEDED
    drawn = torch.from_numpy(seeded_positions(SEED, count, shape[0] * shape[1]).astype("int32"))
    streams.add_sparse(name, SparseRows(shape, drawn, numbers(count)), "sign_tensor", torch.float32, seed=SEED)
    for name, shape, every, values, kinds in MULTIPLES:
        positions = torch.arange(shape[0] * shape[1], dtype=torch.int32)[::every]
        times = torch.arange(len(positions)) * 7 % kinds + 1
        rows = SparseRows(shape, positions, few(len(positions), 1) * times)
        streams.add_sparse(name, rows, values, torch.float32, multiples=times)
    for name, whole, values in WHOLE:
        difference = numbers(torch.Size(whole).numel()).reshape(whole)
        streams.add_whole(name, difference, values, torch.float32)
    streams.add_low_rank("low_rank", [band(30, 20, *each) for each in BANDS], torch.bfloat16)
    name, shape, every, values = HYBRID
    positions = torch.arange(shape[0] * shape[1], dtype=torch.int32)[::every]
    streams.add_sparse(name, SparseRows(shape, positions, numbers(len(positions))), values, torch.bfloat16)
    streams.add_factors(name, [band(*shape, *each) for each in HYBRID_BANDS])
    streams.add_neurons("low_rank", numbers(30).abs(), (torch.arange(30) - 14) / 15)
    streams.add_neurons("gap.int4", numbers(40).relu(), torch.linspace(-1, 1, 40))
    nothing = SparseRows((7, 3), torch.empty(0, dtype=torch.int32), torch.empty(0))
    streams.add_sparse("grown.weight", nothing, "bf16", torch.float16)
    streams.add_appended("grown.weight", numbers(6).reshape(2, 3).to(torch.float16))


def band(rows: int, columns: int, rank: int, values: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    return numbers(rows * rank).reshape(rows, rank), numbers(columns * rank).reshape(columns, rank), values


def manifest(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "base": {"name": "golden", "fingerprint": FINGERPRINT},
        "compression": {"method": "random", "density": 0.25, "seed": 7, "params": {"values": "int8", "scale": 1.5}},
        "statistics": {"relative_error": 0.5, "sigma": 0.125},
        "provenance": {
            "finetuned": "golden-tuned",
            "tool": "patchbay golden",
            "original_bytes": 10_000,
            "parameters": 5_000,
        },
        "tensors": entries,
        "missing": ("pooler.weight",),
        "prefix": "bert.",
        "config": {"id2label": {"0": "no", "1": "yes"}, "dropout": 0.5, "architectures": ["Golden"]},
        "config_removed": ("torch_dtype",),
        "labels": ("no", "yes"),
        "tokens": ({"id": 99, "content": "<golden>", "special": True}, {"id": 100, "content": "ß", "special": False}),
    }


def flat(delta: Delta) -> dict[str, torch.Tensor]:
    """All decoded tensors under one name each; what has factors as its whole difference, too."""
    tensors = {f"vectors.{name}": tensor for name, tensor in delta.vectors.items()}
    tensors |= {f"added.{name}": tensor for name, tensor in delta.added.items()}
    tensors |= {f"copied.{name}": tensor for name, tensor in delta.copied.items()}
    for name, rows in delta.matrices.items():
        tensors |= {f"matrices.{name}.positions": rows.positions, f"matrices.{name}.values": rows.values}
    for name, factors in delta.factors.items():
        tensors |= {f"factors.{name}.left": factors.left, f"factors.{name}.right": factors.right}
        tensors |= {f"differences.{name}": delta.difference(name)}
    for name, listed in delta.exceptions.items():
        tensors |= {f"exceptions.{name}.positions": listed.positions, f"exceptions.{name}.bits": listed.bits}
    for name, neurons in delta.neurons.items():
        tensors |= {f"neurons.{name}.energy": neurons.energy, f"neurons.{name}.cosine": neurons.cosine}
    tensors |= {f"appended.{name}": rows for name, rows in delta.appended.items()}
    return tensors


def main() -> None:
    entries, streams = build().finish()
    write_delta(FILE, manifest(entries), streams)
    save_file(flat(read_delta(FILE, SPECS, FINGERPRINT)), EXPECTED)
    files = (FILE_VERSION_1, EXPECTED_VERSION_1, FILE, EXPECTED)
    digests = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (HERE / "SHA256SUMS").write_text("".join(digests))


if __name__ == "__main__":
    main()
