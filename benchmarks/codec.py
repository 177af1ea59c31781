"""How near a delta file comes to the entropy bound, and how fast it is written and read, for each encoding.

    python -m benchmarks.codec

Differences are drawn from a Laplace distribution, so nothing is downloaded. A second run measures what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.laplace import HIDDEN, NUM_LEVELS, Kept, draw, keep, to_levels
from benchmarks.machine import machine
from benchmarks.quality_compression import CACHE
from benchmarks.report import markdown_table
from benchmarks.results import Ledger, Line
from patchbay.architecture import Kind, TensorSpec
from patchbay.delta import Delta, DeltaFile, SparseRows, write_delta
from patchbay.delta.codecs import VALUES
from patchbay.delta.codecs.affine import GROUP
from patchbay.delta.encode import Streams
from patchbay.delta.entries import Sparse

DENSITIES = (0.005, 0.01, 0.05, 0.2, 1.0)
ENTRIES = 20_000_000
BITS = {"fp32": 32.0, "bf16": 16.0, "levels": 1 + math.log2(NUM_LEVELS)}
BITS |= {f"int{bits}": bits + 32 / GROUP for bits in (8, 4)}  # with two fp16 scales a group
BITS |= dict.fromkeys(("sign_tensor", "sign_row", "sign_column", "sign_column_log"), 1.0)
QUESTION = ("kind", "entries", "repetitions", "density", "seeded", "values")
SIZES = ("bits/param", "of positions", "of values", "bound", "ratio")
COLUMNS = ("density", "positions", "values", *SIZES, "encode GB/s", "decode GB/s")
FINGERPRINT = f"sha256:{'0' * 64}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the results file lacks, then prints the table and writes it beside."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    ledger = Ledger(options.cache.expanduser() / f"codec-{options.entries}.jsonl", QUESTION)
    questions = list(_questions(options.entries, options.repetitions))
    missing = [question for question in questions if ledger.find(question) is None]
    if missing:
        ledger.append(machine(1))
        _answer(missing, draw(options.entries), ledger)
    text = markdown([ledger.find(question) or {} for question in questions], ledger.find({"kind": "machine"}) or {})
    ledger.file.with_suffix(".md").write_text(text + "\n", "utf-8")
    print(text)


def _questions(entries: int, repetitions: int) -> Iterator[Line]:
    """Every value encoding at every density; at density 1 there are no positions to draw."""
    asked = {"kind": "cell", "entries": entries, "repetitions": repetitions}
    for density, seeded, values in itertools.product(DENSITIES, (False, True), VALUES):
        if density < 1 or not seeded:
            yield {**asked, "density": density, "seeded": seeded, "values": values}


def _answer(questions: Sequence[Line], matrices: Mapping[str, torch.Tensor], ledger: Ledger) -> None:
    progress = track(questions, "files", console=Console(stderr=True))
    for (density, seeded), group in itertools.groupby(progress, key=lambda asked: (asked["density"], asked["seeded"])):
        kept = keep(matrices, density, seeded=seeded)
        for asked in group:
            ledger.append(asked | measure(kept, asked["values"], asked["repetitions"]))


def encode(path: Path, kept: Kept, values: str) -> tuple[DeltaFile, dict[str, SparseRows]]:
    """A whole file, and what a reader has to find in it."""
    streams = Streams()
    seen = {
        name: streams.add_sparse(name, rows, values, torch.bfloat16, seed=kept.seeds.get(name))
        for name, rows in kept.rows.items()
    }
    entries, data = streams.finish()
    manifest = {
        "base": {"name": "laplace", "fingerprint": FINGERPRINT},
        "compression": {"method": "benchmark", "density": kept.density, "params": {"values": values}},
        "statistics": {"relative_error": 0.0, "sigma": 0.0},
        "provenance": {"finetuned": "laplace", "tool": "benchmarks.codec", "original_bytes": 2 * kept.parameters},
        "tensors": entries,
    }
    return write_delta(path, manifest, data), seen


def decode(path: Path, rows: Mapping[str, SparseRows]) -> Delta:
    """The whole file again, with every check but the payload's hash."""
    specs = {name: TensorSpec(name, name, part.shape, "BF16", Kind.LINEAR, 0, (), False) for name, part in rows.items()}
    return DeltaFile.open(path).load(specs, FINGERPRINT)


def bound(density: float, values: str, *, seeded: bool) -> float:
    """H(d) + b d bits a parameter, H the binary entropy; b d where a seed tells the positions."""
    shares = [] if seeded else [share for share in (density, 1 - density) if share > 0]
    return BITS[values] * density - sum(share * math.log2(share) for share in shares)


def measure(kept: Kept, values: str, repetitions: int) -> Line:
    """Sizes of one file in bits a parameter, and the seconds of each repetition. Asserts that it is read as written."""
    if values == "levels":
        kept = Kept({name: to_levels(rows) for name, rows in kept.rows.items()}, kept.seeds)
    times: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repetitions):
            start = time.perf_counter()
            file, seen = encode(Path(folder) / "delta.safetensors", kept, values)
            written = time.perf_counter()
            delta = decode(file.path, kept.rows)
            times.append((written - start, time.perf_counter() - written))
    for name, rows in seen.items():
        found = delta.matrices[name].unpacked()
        assert torch.equal(found.positions, rows.positions), name
        assert torch.equal(found.values, rows.values), name
    items, entries = file.itemised(), file.manifest.tensors.values()
    return {
        "positions": "+".join(sorted({entry.positions for entry in entries if isinstance(entry, Sparse)})),
        "parameters": kept.parameters,
        "bits": 8 * file.num_bytes / kept.parameters,
        "position_bits": 8 * items["positions"] / kept.parameters,
        "value_bits": 8 * (items["values"] + items["scales"]) / kept.parameters,
        "bound": bound(kept.density, values, seeded=bool(kept.seeds)),
        "encode_seconds": [encoding for encoding, _ in times],
        "decode_seconds": [decoding for _, decoding in times],
    }


def markdown(lines: Sequence[Line], machine: Line) -> str:
    """The machine, and a table with median speeds and their extremes."""
    head = f"Measured {machine['started']} on {machine['processor']}, {machine['cores']} cores, one thread; Python "
    head += f"{machine['python']}, torch {machine['torch']}, patchbay {machine['patchbay']}; "
    head += f"{lines[0]['parameters']:,} parameters, {lines[0]['repetitions']} repetitions."
    return f"{head}\n\n{markdown_table(COLUMNS, [_row(line) for line in lines])}"


def _row(line: Line) -> list[str]:
    sizes = [line["bits"], line["position_bits"], line["value_bits"], line["bound"], line["bits"] / line["bound"]]
    speeds = [_speed(line[key], line["parameters"]) for key in ("encode_seconds", "decode_seconds")]
    return [f"{line['density']:g}", line["positions"], line["values"], *(f"{size:.4f}" for size in sizes), *speeds]


def _speed(seconds: Sequence[float], parameters: int) -> str:
    """bf16 bytes of the dense tensors over time."""
    speeds = [2e-9 * parameters / second for second in seconds]
    return f"{statistics.median(speeds):.3f} ({min(speeds):.3f}..{max(speeds):.3f})"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--entries", type=int, default=ENTRIES, help="of all matrices; default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=5, help="of each file; default: %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.entries < HIDDEN or options.repetitions < 1:
        parser.error(f"at least {HIDDEN} entries and one repetition are needed")
    return options


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
