"""Does NPS as it was published do what it was published for? At equal density, as in the paper, not at equal bytes.

    python -m benchmarks.claims --tasks DIR --backbone FOLDER

The largest entries of a task vector, kept as they are, with one scale, or with a weight for each magnitude group, all
values in 16 bits; the fine-tunes, rows and scores are those of `quality_compression`.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.families.base import Family, OnProgress
from benchmarks.jobs import Refer, bench_of, flat, full_of, question_of
from benchmarks.measure import compare
from benchmarks.methods import Effort
from benchmarks.parallel import Workers
from benchmarks.quality_compression import QUESTION, families_of, parse, prepare, record, scale_of
from benchmarks.report import markdown_table
from benchmarks.results import Ledger, Line, read_lines
from patchbay.compress.compress import compress
from patchbay.compress.options import Options
from patchbay_server.commands.quiet import silence_libraries

DENSITIES = (0.02, 0.05, 0.1)
VARIANTS: Mapping[str, Callable[[float], Options]] = {
    "magnitude": lambda density: Options("magnitude", density=density, values="bf16"),
    "magnitude x scale": lambda density: Options("scaled_magnitude", density=density, values="bf16"),
    "NPS, M = 1": lambda density: Options("nps", density=density, values="bf16", support="topk", groups=1),
    "NPS, M = 8": lambda density: Options("nps", density=density, values="bf16", support="topk", groups=8),
}
COLUMNS = ("family", "variant", "density", "score", "retained %", "agreement %", "KL", "tasks")


@dataclass(frozen=True, slots=True)
class Claim:
    """One variant at one density."""

    reference: Refer
    variant: str
    density: float
    effort: Effort

    @property
    def title(self) -> str:
        return f"{self.reference.title} {self.variant} {self.density:g}"

    def question(self) -> Line:
        # The ledger's field for "how much" is named after the other benchmark's sizes; here it holds densities.
        asked = {"kind": "claim", "method": self.variant, "bits": self.density, "seed": 0}
        return question_of(self.reference) | asked | {"options": repr(self._options)}

    def run(self, on_progress: OnProgress) -> Line:
        family, case = self.reference.family, self.reference.case
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "delta.safetensors"
            compress(case.base, case.finetuned, file, self._options, calibration=self.effort.read(case.calibration))
            outputs = bench_of(case.base).outputs(file, partial(family.logits, case.task))
        scores = compare(outputs, full_of(self.reference.outputs), family.targets(case.task))
        return self.question() | dict(flat(scores))

    @property
    def _options(self) -> Options:
        return self.effort.limit(VARIANTS[self.variant](self.density))


def measure(families: Sequence[Family], effort: Effort, cache: Path, ledger: Ledger, workers: Workers) -> None:
    """Every variant at every density on every task, as far as it is missing."""
    references = prepare(families, cache, ledger, workers)
    asked = itertools.product(references, VARIANTS, DENSITIES)
    claims = [Claim(job, variant, density, effort) for job, variant, density in asked]
    record(ledger, workers, "claims", [claim for claim in claims if ledger.find(claim.question()) is None])


def table(lines: Sequence[Line]) -> str:
    """Markdown: means over the tasks that count, of every question the latest answer."""
    counted = {(line["family"], line["task"]): line["finetune"] for line in lines if line.get("counts")}
    cells: dict[tuple[str, float, str], dict[str, Line]] = {}
    for line in lines:
        if line["kind"] == "claim" and counted.get((line["family"], line["task"])) == line["finetune"]:
            cells.setdefault((line["family"], line["bits"], line["method"]), {})[line["task"]] = line
    order = list(VARIANTS)
    keys = sorted(cells, key=lambda key: (key[0], key[1], order.index(key[2])))
    return markdown_table(COLUMNS, [_row(*key, list(cells[key].values())) for key in keys])


def _row(family: str, density: float, variant: str, lines: Sequence[Line]) -> list[str]:
    def mean(field: str) -> float:
        return sum(float(line[field]) for line in lines) / len(lines)

    numbers = [f"{mean('score'):.3f}", f"{mean('retained'):.1f}", f"{100 * mean('agreement'):.1f}", f"{mean('kl'):.3g}"]
    return [family, variant, f"{density:g}", *numbers, str(len(lines))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the cache does not hold and prints the table."""
    options = parse(arguments, __doc__)
    scale, cache = scale_of(options), options.cache.expanduser()
    ledger = Ledger(cache / f"compression-{scale.name}.jsonl", QUESTION)
    console = Console()
    silence_libraries()
    with Workers(options.workers, console) as workers:
        measure(families_of(options, scale, cache), scale.effort, cache, ledger, workers)
    console.print(table(read_lines(ledger.file)), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
