"""Which merging method keeps the most of several fine-tunes?

    python -m benchmarks.quality_merging --tasks DIR --backbone FOLDER

The fine-tunes are those of `quality_compression`, and found in its cache. Everything is kept there: a second run does
what is missing and reports again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.families.base import Case, Family
from benchmarks.families.text_cases import Text
from benchmarks.jobs import Train
from benchmarks.merges import Member, is_for_one_task
from benchmarks.merging import ALL, FULL_SOURCE, LEFT_OUT, PAIRS, PARTS, Alone, Deliver, Merge, Source
from benchmarks.methods import Effort
from benchmarks.other_tools import Missing, OtherMerge, Tool
from benchmarks.parallel import Workers
from benchmarks.quality_compression import CACHE, record
from benchmarks.report_merging import load, markdown, write_report
from benchmarks.results import Ledger
from benchmarks.tool_mergekit import COMMAND, Mergekit
from benchmarks.tool_peft import Peft
from patchbay.merge import AUTO, METHODS
from patchbay.merge.recipe import MAX_TERMS
from patchbay_server.commands.quiet import silence_libraries

QUESTION = (
    *("kind", "family", "part", "source", "method", "params", "tuned"),
    *("tasks", "merged", "scored", "rows", "inputs", "finetunes", "deltas"),
)
MAIN = frozenset({"task_arithmetic", "ties", "neuromerging", "tsv_m", "iso_c", "iso_cts", "svc", "wudi", "pcb"})
NUM_LEFT_OUT = 2  # tasks of which the out-of-domain merges know nothing: the last ones by name
Members = tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. `--quick` ends in 20 minutes on two cores. `tuned`: the methods whose scale is searched,
    on `inputs` calibration inputs a task; None for all. `other_tools`: whether they merge the same fine-tunes.
    """

    name: str
    sources: tuple[Source, ...]
    test_rows: int
    inputs: int
    tuned: Collection[str] | None
    effort: Effort
    other_tools: bool = False

    def variants(self, method: str) -> tuple[bool, ...]:
        """Untuned, and tuned where it is."""
        return (False, True) if self.tuned is None or method in self.tuned else (False,)


FULL = Scale("full", (FULL_SOURCE, Source(0.4), Source(0.1)), 500, 64, None, Effort(), True)
QUICK = Scale("quick", (FULL_SOURCE, Source(0.1, data_free=True)), 250, 32, MAIN, Effort(12, 64), True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures and reports, as far as the cache does not hold it already."""
    options = _parse(arguments)
    scale = _scale(options)
    cache = options.cache.expanduser()
    ledger = Ledger(cache / f"merging-{scale.name}.jsonl", QUESTION)
    console = Console()
    silence_libraries()
    tools = tools_of(options.mergekit, console) if scale.other_tools else []
    family = Text(cache / "models", options.tasks, options.backbone, scale.test_rows)
    with Workers(options.workers, console) as workers:
        measure(family, scale, cache, ledger, workers, tools)
    results = load(ledger.file)
    console.print(markdown(results), markup=False, highlight=False, soft_wrap=True)
    for written in write_report(results, cache / f"merging-{scale.name}"):
        console.print(f"wrote {written}", highlight=False)


def tools_of(mergekit: Path | None, console: Console) -> list[Tool]:
    """The other tools that can be run here. Of each that cannot, it prints why."""
    found: list[Tool] = []
    for find in (partial(Mergekit.find, mergekit), Peft.find):
        try:
            found.append(find())
        except Missing as reason:
            console.print(str(reason), markup=False, highlight=False, soft_wrap=True)
    return found


def measure(
    family: Family, scale: Scale, cache: Path, ledger: Ledger, workers: Workers, tools: Sequence[Tool] = ()
) -> None:
    """Fine-tunes, deltas, each fine-tune alone, then every merge, ours first: each stage skips what is there."""
    trained = workers.run("fine-tunes", [Train(family, task) for task in family.tasks[:MAX_TERMS]])
    cases = sorted(trained, key=lambda case: case.task)
    for source in scale.sources:  # whole task vectors first: the others' sizes are without what their heads take there
        jobs = [Deliver(case, source, cache / "deltas", scale.effort) for case in cases]
        list(workers.run(f"deltas, {source.name}", [job for job in jobs if not job.file.is_file()]))
    alone = [Alone(family, case, _full(case, scale, cache)) for case in cases]
    record(ledger, workers, "alone", [job for job in alone if ledger.find(job.question()) is None])
    merges = list(merges_of(family, cases, scale, cache, ledger))
    record(ledger, workers, "merges", [merge for merge in merges if ledger.find(merge.question()) is None])
    members = tuple(_member(family, case, FULL_SOURCE, scale, cache, ledger) for case in cases)
    others = [OtherMerge(family, tool, method, members, scale.test_rows) for tool in tools for method in tool.methods]
    record(ledger, workers, "other tools", [merge for merge in others if ledger.find(merge.question()) is None])


def merges_of(family: Family, cases: Sequence[Case], scale: Scale, cache: Path, ledger: Ledger) -> Iterator[Merge]:
    """What is asked for first comes first. Untuned and tuned follow each other: the second finds the first's merge."""
    every = [
        (source, tuple(_member(family, case, source, scale, cache, ledger) for case in cases))
        for source in scale.sources
    ]
    parts = [(source, members, *part) for source, members in every for part in _parts(members, source)]
    for source, members, part, merged, scored in sorted(parts, key=lambda item: PARTS.index(item[2])):
        for method in METHODS:
            if _takes(method, part, len(merged)):
                for tuned in scale.variants(method) if part == ALL else (False,):
                    asked = (members, merged, scored, scale.test_rows, scale.inputs)
                    yield Merge(family, part, source, method, tuned, *asked)


def _member(family: Family, case: Case, source: Source, scale: Scale, cache: Path, ledger: Ledger) -> Member:
    full = _full(case, scale, cache)
    alone = ledger.find(Alone(family, case, full).question())
    assert alone is not None, "fine-tunes are measured before merges"
    file = Deliver(case, source, cache / "deltas", scale.effort).file
    return Member(case, file, full, alone["finetune"]["value"])


def _full(case: Case, scale: Scale, cache: Path) -> Path:
    return Deliver(case, FULL_SOURCE, cache / "deltas", scale.effort).file


def _parts(members: Members, source: Source) -> Iterator[tuple[str, Members, Members]]:
    """All tasks; of whole task vectors also the tasks that were left out of a merge, and two tasks at a time."""
    yield ALL, members, members
    if source == FULL_SOURCE and len(members) >= NUM_LEFT_OUT + 2:
        yield LEFT_OUT, members[:-NUM_LEFT_OUT], members[-NUM_LEFT_OUT:]
        for first in range(0, len(members) - 1, 2):
            pair = members[first : first + 2]
            yield PAIRS, pair, pair


def _takes(method: str, part: str, count: int) -> bool:
    """Two tasks at a time are for methods that take no more, and what they are compared with."""
    if method == AUTO:  # a second name of a method that is measured under its own
        return False
    least, most = METHODS[method].num_terms
    if part == PAIRS:
        return most == 2 or method in ("task_arithmetic", "linear", "neuromerging")
    return least <= count <= most and not (part == LEFT_OUT and is_for_one_task(method))


def _scale(options: argparse.Namespace) -> Scale:
    scale = QUICK if options.quick else FULL
    if not options.data_free:
        return scale
    return replace(scale, sources=tuple(replace(source, data_free=source.bits is not None) for source in scale.sources))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    tasks = f"folder of text tasks: DIR/<task>/{{train,test}}.tsv, label<TAB>text; the first {MAX_TERMS} by name"
    parser.add_argument("--tasks", type=Path, required=True, help=tasks)
    parser.add_argument("--backbone", type=Path, required=True, help="Hugging Face folder of the text encoder")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread and 3 GB each; default: 2")
    parser.add_argument("--data-free", action="store_true", help="compress without calibration inputs: seconds a task")
    mergekit = f"mergekit's command, merges by which are compared with; default: {COMMAND} where it is found"
    parser.add_argument("--mergekit", type=Path, metavar="COMMAND", help=mergekit)
    parser.add_argument("--quick", action="store_true", help="fewer rows, sources and tuned methods: 20 minutes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
