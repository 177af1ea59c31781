"""Makes the golden file of lossless tensors, which are read against a base, and what it must decode to:

PYTHONPATH=core:. python -m tests.golden.lossless
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import save_file
from tests.delta.samples import spec
from tests.golden.make import FINGERPRINT, HERE, flat, manifest, numbers

from patchbay.architecture import TensorSpec
from patchbay.delta import DeltaFile, write_delta
from patchbay.delta.encode import DTYPE_NAMES, Streams

FILE = HERE / "delta_v2_lossless.safetensors"
EXPECTED = HERE / "delta_v2_lossless.expected.safetensors"
# -0.0, infinity, NaNs with payloads and the smallest subnormal: bits of the fine-tune.
ODD = {
    torch.float64: (1 << 63, 0x7FF << 52, 0x7FF8000000000ABC, 0x7FF0000000000ABC, 1),
    torch.float32: (1 << 31, 0x7F800000, 0x7FC12345, 0xFF812345, 1),
    torch.float16: (1 << 15, 0x7C00, 0x7E12, 0xFD12, 1),
    torch.bfloat16: (1 << 15, 0x7F80, 0x7FC5, 0xFF85, 1),
}
# name, shape, dtype of the base, dtype of the fine-tune
TENSORS = (
    ("matrix.f32", (20, 15), torch.float32, torch.float32),
    ("matrix.bf16", (20, 15), torch.bfloat16, torch.bfloat16),
    ("vector.f16", (33,), torch.float16, torch.float16),
    ("vector.f64", (9,), torch.float64, torch.float64),
    ("narrower.bf16", (6, 7), torch.float32, torch.bfloat16),
    ("wider.f32", (6, 7), torch.bfloat16, torch.float32),
    ("scalar.f32", (), torch.float32, torch.float32),
    ("empty.f32", (3, 0), torch.float32, torch.float32),
)
SPECS: Mapping[str, TensorSpec] = {name: spec(name, shape, DTYPE_NAMES[old]) for name, shape, old, _ in TENSORS}


def models() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Base and fine-tune: neighbours, but for some odd bits."""
    base, tuned = {}, {}
    for name, shape, old, new in TENSORS:
        count = torch.Size(shape).numel()
        values = 64 * numbers(count)
        base[name] = values.to(old).reshape(shape)
        tuned[name] = (values + numbers(count).flip(0) / 16).to(new).reshape(shape)
        if count >= 9:
            width = new.itemsize
            odd = np.array(ODD[new], f"<u{width}").view(f"<i{width}").copy()
            tuned[name].view(-1)[2:7] = torch.from_numpy(odd).view(new)
    return base, tuned


def build() -> Streams:
    streams, (base, tuned) = Streams(), models()
    for name in base:
        streams.add_lossless(name, base[name], tuned[name])
    streams.add_neurons("matrix.f32", numbers(20).abs(), (torch.arange(20) - 9) / 15)
    return streams


def main() -> None:
    entries, streams = build().finish()
    file = write_delta(FILE, manifest(entries), streams)
    delta = DeltaFile.open(file.path).load(SPECS, FINGERPRINT, finite=False, read_base=models()[0].__getitem__)
    save_file(flat(delta), EXPECTED)


if __name__ == "__main__":
    main()
