"""Task vectors of a few hand-written matrices, as methods see them: no models, no files, no calibration inputs."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from tests import pico

from patchbay.compress.methods import find_method
from patchbay.compress.options import Options
from patchbay.compress.parts import Part, SparsePart, Vector
from patchbay.compress.problem import Problem
from patchbay.compress.record import Record
from patchbay.delta import Manifest
from patchbay.delta.manifest import FORMAT_VERSION, Base, Compression, Provenance, Statistics

Tensors = Mapping[str, torch.Tensor]
HASH = f"sha256:{'0' * 64}"
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    base=Base(name="base", fingerprint=HASH),
    compression=Compression(method="nps", density=0.0),
    statistics=Statistics(relative_error=0.0, sigma=0.0),
    provenance=Provenance(finetuned="tuned", tool="tests", original_bytes=1),
    tensors={},
    payload_sha256=HASH,
)


def vector_of(tensors: Tensors, ratio: float = 0.01) -> Vector:
    names = tuple(sorted(tensors))
    return Vector(names, lambda name: tensors[name].clone(), {name: tensors[name].numel() for name in names}, ratio)


def problem_of(tensors: Tensors, ratio: float = 0.01) -> Problem:
    return Problem(vector_of(tensors, ratio), MANIFEST, {}, {}, {}, appended={}, record=Record(0))


def parts_of(tensors: Tensors, density: float, weights: tuple[float, ...] = (), **options: object) -> dict[str, Part]:
    """What a method keeps at `density`, NPS with these group weights, asked in the order that writing asks in."""
    method = find_method(problem_of(tensors), Options(**options))  # type: ignore[arg-type]
    method.tune(density)
    if weights:
        method.weights = weights  # type: ignore[attr-defined]
    pruner = method.pruner(density)
    return {name: pruner(name, tensors[name]) for name in sorted(tensors)}


def flat(parts: Mapping[str, Part]) -> torch.Tensor:
    """fp32: all sparse parts, dense, as one long vector in order of names."""
    dense = [part.rows.to_dense().flatten() for _, part in sorted(parts.items()) if isinstance(part, SparsePart)]
    return torch.cat(dense)


def random_tensors(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Normal numbers: no two have the same magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@st.composite
def tensors(draw: st.DrawFn, *, few: bool = True) -> dict[str, torch.Tensor]:
    """One to three small matrices of numbers of moderate size; with `few`, in half of the cases nearly all are ties."""
    numbers = st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
    values = draw(st.sampled_from([st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]), numbers])) if few else numbers
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 10)), min_size=1, max_size=3))
    return {
        f"m{number}": torch.tensor(draw(st.lists(values, min_size=r * c, max_size=r * c))).reshape(r, c)
        for number, (r, c) in enumerate(shapes)
    }


def texts(number: int, seed: int = 0) -> tuple[str, ...]:
    """Sentences of two to nine words that the tests' tokenizer knows."""
    draw = random.Random(seed)
    return tuple(" ".join(draw.choices(pico.WORDS, k=draw.randint(2, 9))) for _ in range(number))
