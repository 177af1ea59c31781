"""How much memory many deltas take beside one base: counted, not timed."""

from __future__ import annotations

from benchmarks.results import Line
from benchmarks.systems.base import Ask
from benchmarks.systems.models import Model, Size
from benchmarks.systems.ours import Ours
from benchmarks.systems.shapes import opened
from patchbay.engine.recipes import Path as How

MANY = 64
SIGNS = Size(0.01, signs=True)


def resident(model: Model) -> Line:
    """Bytes of 64 deltas of signs at density .01, as the engine counts one of them, and of one dense model in bf16."""
    backbone = model.load()
    [file] = model.delta_files(1, SIGNS)
    ours = Ours("decoupled", backbone, {"0": opened(file, backbone)}, How.DECOUPLED)
    try:
        before = ours.resident_bytes
        ours.ready(Ask((5,), 1, ((0, 1.0),)))
        one = ours.resident_bytes - before
    finally:
        ours.close()
    return {
        "kind": "resident",
        "deltas": MANY,
        "density": SIGNS.share,
        "bytes": MANY * one,
        "file_bytes": MANY * file.stat().st_size,
        "dense_bytes": 2 * backbone.num_parameters,
    }
