"""At equal bytes on disk, which compression method keeps the most of a fine-tune?

    python -m benchmarks.quality_compression --tasks DIR --backbone FOLDER

Everything is kept in the cache: a second run does what is missing and reports again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks.aggregate import load
from benchmarks.families.base import Case, Family
from benchmarks.families.language import Language
from benchmarks.families.language import Training as LanguageTraining
from benchmarks.families.text_cases import Text
from benchmarks.families.vision import Vision
from benchmarks.jobs import Refer, Train, TrainBase, Try
from benchmarks.machine import machine
from benchmarks.methods import METHODS, Effort
from benchmarks.parallel import Job, Workers
from benchmarks.report import print_report, write_report
from benchmarks.results import Ledger, Line
from patchbay_server.commands.quiet import silence_libraries

FAMILIES = ("vision", "language", "text")
QUESTION = ("kind", "family", "task", "finetune", "rows", "method", "bits", "seed", "options")
CACHE = Path("~/.cache/patchbay-bench")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. `--quick` ends in 20 minutes on two cores."""

    name: str
    bits: tuple[float, ...]
    methods: tuple[str, ...]
    seeds: int
    test_rows: int
    test_windows: int
    pretraining_seconds: float
    max_tasks: int | None
    epochs: int | None
    effort: Effort


FULL = Scale("full", (0.05, 0.1, 0.2, 0.4, 1.0, 2.0), tuple(METHODS), 3, 1000, 100, 900, None, None, Effort())
QUICK = Scale("quick", (0.1, 1.0), tuple(METHODS), 1, 200, 8, 40, 2, 2, Effort(6, 32))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures and reports, as far as the cache does not hold it already."""
    options = parse(arguments, __doc__)
    scale = scale_of(options)
    cache = options.cache.expanduser()
    ledger = Ledger(cache / f"compression-{scale.name}.jsonl", QUESTION)
    console = Console()
    silence_libraries()
    with Workers(options.workers, console) as workers:
        measure(families_of(options, scale, cache), scale, cache, ledger, workers)
    results = load(ledger.file)
    print_report(results, console)
    for written in write_report(results, cache / f"compression-{scale.name}"):
        console.print(f"wrote {written}", highlight=False)


def measure(families: Sequence[Family], scale: Scale, cache: Path, ledger: Ledger, workers: Workers) -> None:
    """Bases, fine-tunes, full outputs, then every method at every size: each stage skips what is there."""
    cells = [cell for job in prepare(families, cache, ledger, workers) for cell in _cells(job, scale, ledger)]
    record(ledger, workers, "compress", [cell for cell in cells if ledger.find(cell.question()) is None])


def prepare(families: Sequence[Family], cache: Path, ledger: Ledger, workers: Workers) -> list[Refer]:
    """Bases, fine-tunes and full outputs, as far as they are missing; what the fine-tunes are compared with."""
    by_name = {family.name: family for family in families}
    first: list[Job[object]] = [TrainBase(family) for family in families if not family.has_base()]
    # A family that has its base need not wait for the others'.
    first += [Train(family, task) for family in families if family.has_base() for task in family.tasks]
    list(workers.run("bases and fine-tunes", first))
    training = [Train(family, task) for family in families for task in family.tasks]
    cases = sorted(workers.run("fine-tunes", training), key=lambda case: (case.family, case.task))
    references = [_refer(by_name[case.family], case, cache) for case in cases]
    missing = [job for job in references if ledger.find(job.question()) is None or not job.outputs.is_file()]
    record(ledger, workers, "full outputs", missing)
    return references


def _refer(family: Family, case: Case, cache: Path) -> Refer:
    rows = len(family.targets(case.task))
    name = f"{case.family}-{case.task}-{case.fingerprint.removeprefix('sha256:')[:12]}-{rows}.npy"
    return Refer(family, case, cache / "outputs" / name)


def _cells(job: Refer, scale: Scale, ledger: Ledger) -> Iterator[Try]:
    reference = ledger.find(job.question())
    assert reference is not None, "references are measured before cells"
    for name in scale.methods:
        for bits in scale.bits:
            for seed in range(scale.seeds if METHODS[name].is_random else 1):
                yield Try(job.family, job.case, job.outputs, name, bits, seed, reference["head_bytes"], scale.effort)


def record(ledger: Ledger, workers: Workers, title: str, jobs: Sequence[Job[Line]]) -> None:
    """Every result is on disk as soon as it is there, under the machine that it was measured on."""
    if jobs:
        ledger.append(machine(workers.count))
    for line in workers.run(title, jobs):
        ledger.append(line)


def families_of(options: argparse.Namespace, scale: Scale, cache: Path) -> list[Family]:
    """The families that were asked for and can be measured."""
    models = cache / "models"
    pretraining = LanguageTraining(scale.pretraining_seconds, learning_rate=1e-3)
    finetuning = LanguageTraining(scale.pretraining_seconds / 3, learning_rate=3e-4)
    known: dict[str, Family] = {
        "vision": Vision(models, max_test=scale.test_rows, max_tasks=scale.max_tasks),
        "language": Language(models, pretraining, finetuning, max_test=scale.test_windows, max_tasks=scale.max_tasks),
    }
    if options.tasks:
        known["text"] = Text(models, options.tasks, options.backbone, scale.test_rows, scale.max_tasks, scale.epochs)
    return [known[name] for name in options.families if name in known]


def scale_of(options: argparse.Namespace) -> Scale:
    """The full or the quick grid, or less of it: what one evening measures, the next one goes on from."""
    scale = QUICK if options.quick else FULL
    bits, methods = tuple(options.bits or scale.bits), tuple(options.methods or scale.methods)
    return replace(scale, bits=bits, methods=methods, seeds=options.seeds or scale.seeds)


def parse(arguments: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The options that all benchmarks on these fine-tunes share."""
    parser = argparse.ArgumentParser(description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", type=Path, help="folder of text tasks: DIR/<task>/{train,test}.tsv, label<TAB>text")
    parser.add_argument("--backbone", type=Path, help="Hugging Face folder of the text encoder")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="default: all")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; default: %(default)s")
    parser.add_argument("--bits", nargs="+", type=float, metavar="BITS", help="default: all sizes")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="default: all")
    parser.add_argument("--seeds", type=int, help="of methods that draw; default: 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="smaller everything: 20 minutes on two cores")
    options = parser.parse_args(arguments)
    if (options.tasks is None) != (options.backbone is None):
        parser.error("the text family needs both --tasks and --backbone")
    if tuple(options.families) != FAMILIES and "text" in options.families and options.tasks is None:
        parser.error("--families text needs --tasks and --backbone")
    return options


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
