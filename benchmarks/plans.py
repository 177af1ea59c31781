"""How long a NeuroMerge takes to plan: by Gram matrices, as it is served, and by the published decomposition of rows.

    python -m benchmarks.plans

Deltas and weights are drawn, so nothing is downloaded. Both are timed in one run, on the same sparse deltas.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.report import markdown_table
from patchbay.architecture import Kind, TensorSpec
from patchbay.delta import Delta, Manifest, SparseRows
from patchbay.engine.pool import Pool
from patchbay.merge import CanonicalRecipe, Merged, build
from patchbay.merge.elect import elect_mean
from patchbay.merge.stack import difference_of

FINGERPRINT = f"sha256:{'0' * 64}"
ROWS = 1024  # whose SVDs are taken together
SAMPLE = 512  # rows of a shape that are looped over
Shape = tuple[int, int]


def _layers(count: int, shapes: Mapping[str, Shape], vocabulary: Shape) -> dict[str, Shape]:
    named = {f"layers.{layer}.{name}.weight": shape for layer in range(count) for name, shape in shapes.items()}
    return {"embed.weight": vocabulary, **named}


SIZES: Mapping[str, dict[str, Shape]] = {
    "all-MiniLM-L6 (22.7 M)": _layers(
        6, dict.fromkeys("qkvo", (384, 384)) | {"up": (1536, 384), "down": (384, 1536)}, (30_522, 384)
    ),
    "Llama (110 M)": _layers(
        12,
        dict.fromkeys("qkvo", (768, 768)) | {"gate": (2048, 768), "up": (2048, 768), "down": (768, 2048)},
        (32_000, 768),
    ),
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A base of random weights."""

    specs: Mapping[str, TensorSpec]
    weights: Mapping[str, torch.Tensor]

    def stored(self, name: str) -> torch.Tensor:
        return self.weights[name]


def draw_base(shapes: Mapping[str, Shape]) -> Drawn:
    generator = torch.Generator().manual_seed(0)
    specs = {name: TensorSpec(name, name, shape, "F32", Kind.LINEAR, 0, (), False) for name, shape in shapes.items()}
    return Drawn(specs, {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def draw_delta(shapes: Mapping[str, Shape], density: float, seed: int) -> Delta:
    """Of every matrix one entry in each stretch of 1 / density, with a random value."""
    generator, rows = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        count = round(density * math.prod(shape))
        starts = torch.arange(count) * (math.prod(shape) // count)
        positions = starts + torch.randint(math.prod(shape) // count, (count,), generator=generator)
        rows[name] = SparseRows(shape, positions.to(torch.int32), 1e-3 * torch.randn(count, generator=generator))
    manifest = Manifest.model_validate(
        {
            "format_version": 2,
            "base": {"name": "drawn", "fingerprint": FINGERPRINT},
            "compression": {"method": "magnitude", "density": density},
            "statistics": {"relative_error": 0.0, "sigma": 0.0},
            "provenance": {"finetuned": f"drawn-{seed}", "tool": "benchmarks.plans", "original_bytes": 0},
            "tensors": {},
            "payload_sha256": FINGERPRINT,
        }
    )
    return Delta(manifest, rows, {}, {}, {}, {})


def published(base: Drawn, deltas: Sequence[Delta]) -> dict[str, torch.Tensor]:
    """As the paper writes it: differences laid out, and an SVD of T x d for every neuron. Its result is a new model."""
    merged: dict[str, torch.Tensor] = {}
    for name, spec in base.specs.items():
        weights = base.stored(name)
        stacked = torch.stack([difference_of(delta, name, spec.shape) for delta in deltas], dim=1)
        along = (stacked @ weights[:, :, None]).squeeze(-1) / weights.square().sum(1, keepdim=True)
        orthogonal = stacked - along[:, :, None] * weights[:, None]
        merged[name] = torch.cat([_elected(rows) for rows in torch.split(orthogonal, ROWS)])
    return merged


def _elected(rows: torch.Tensor) -> torch.Tensor:
    directions = torch.linalg.svd(rows, full_matrices=False)[2]
    elected: torch.Tensor = elect_mean(rows @ directions.mT, dim=1)[:, None] @ directions
    return elected.squeeze(1)


def row_by_row(base: Drawn, deltas: Sequence[Delta]) -> float:
    """Seconds of `published` with the published code's own loops, which split and put together one row after the other
    around the decompositions: measured on SAMPLE rows of each shape, and counted for all.
    """
    total = 0.0
    shapes: dict[Shape, list[str]] = {}
    for name, spec in base.specs.items():
        shapes.setdefault((spec.shape[0], spec.shape[1]), []).append(name)
    for (rows, _), names in shapes.items():
        sample = min(SAMPLE, rows)
        weights = base.stored(names[0])[:sample]
        taus = torch.stack([difference_of(d, names[0], base.specs[names[0]].shape)[:sample] for d in deltas], dim=1)
        started = time.perf_counter()
        _by_loops(weights, taus)
        total += (time.perf_counter() - started) * len(names) * rows / sample
    return total


def _by_loops(weights: torch.Tensor, taus: torch.Tensor) -> None:
    orthogonal = torch.empty_like(taus)
    for row, (weight, each) in enumerate(zip(weights, taus, strict=True)):
        along = each @ weight / weight.square().sum()
        orthogonal[row] = each - along[:, None] * weight
    directions = torch.linalg.svd(orthogonal, full_matrices=False)[2]
    merged = torch.empty_like(weights)
    for row, (each, basis) in enumerate(zip(orthogonal, directions, strict=True)):
        merged[row] = elect_mean(each @ basis.T) @ basis


def seconds(run: Callable[[], object], repetitions: int) -> list[float]:
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def measure(name: str, terms: int, density: float, repetitions: int) -> dict[str, Any]:
    base, deltas = draw_base(SIZES[name]), [draw_delta(SIZES[name], density, seed) for seed in range(terms)]
    recipe = recipe_of(terms)
    cold = seconds(lambda: build(recipe, deltas, base), repetitions)
    pool: Pool[Merged] = Pool(1 << 30)
    merged = pool.get(recipe.hash, lambda: build(recipe, deltas, base))
    warm = seconds(lambda: pool.get(recipe.hash, lambda: merged), 100)
    neurons = sum(rows for rows, _ in SIZES[name].values())
    return {
        "model": name,
        "terms": terms,
        "density": density,
        "bytes": merged.num_bytes,
        "bound": 4 * (terms + 1) * neurons,
        "gram": cold,
        "warm": statistics.median(warm),
        "svd": seconds(lambda: published(base, deltas), 1),
        "loops": row_by_row(base, deltas),
    }


def recipe_of(terms: int) -> CanonicalRecipe:
    params = (("lambda1", 0.0), ("lambda2", 1.0), ("rescale", True))
    return CanonicalRecipe("neuromerging", tuple((str(term), 1.0) for term in range(terms)), 1.0, params, None)


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    timed = ("Gram s", "SVD s", "SVD / Gram", "row by row s", "rows / Gram", "warm ms")
    columns = ("model", "deltas", "density", "plan", "bound", *timed)
    return markdown_table(columns, [_row(line) for line in lines])


def _row(line: Mapping[str, Any]) -> list[str]:
    gram, svd = statistics.median(line["gram"]), statistics.median(line["svd"])
    spread = f"{gram:.2f} ({min(line['gram']):.2f}..{max(line['gram']):.2f})"
    size, bound = f"{line['bytes']:,}", f"{line['bound']:,}"
    counts = [line["model"], str(line["terms"]), f"{line['density']:g}", size, bound]
    decomposed = [f"{svd:.1f}", f"{svd / gram:.0f}", f"{line['loops']:.1f}", f"{line['loops'] / gram:.0f}"]
    return [*counts, spread, *decomposed, f"{1000 * line['warm']:.4f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the machine and the table, and with --json one line a measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--terms", nargs="+", type=int, default=[3, 8])
    parser.add_argument("--density", type=float, default=0.05, help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    lines = []
    for name in options.models:
        for terms in options.terms:
            lines.append(measure(name, terms, options.density, options.repetitions))
            print(f"{name}, {terms} deltas", file=sys.stderr)
    if options.json:
        print("\n".join(json.dumps(line) for line in lines))
    else:
        found = machine(1)
        print(
            f"Measured {found['started']} on {found['processor']}, {found['cores']} cores, "
            f"{torch.get_num_threads()} threads.\n"
        )
        print(markdown(lines))


if __name__ == "__main__":
    main()
