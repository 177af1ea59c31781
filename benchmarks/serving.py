"""Many fine-tunes of one model, served in every way there is, in one run: which answers how fast, from how many bytes.

    python -m benchmarks.serving --quick          # three minutes on two cores
    python -m benchmarks.serving --shape 110M

Weights and deltas are random, so nothing is downloaded. Systems take turns, in one order and then in the other; before
any number is printed, all of them have given the same tokens.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.report_serving import markdown
from benchmarks.results import Line
from benchmarks.serving_gates import GateFailed, check_base, check_tokens, exact
from benchmarks.systems.adapters import Merged, Mixed
from benchmarks.systems.base import Ask, Served, System
from benchmarks.systems.copies import BaseOnly, Replicas, Swap
from benchmarks.systems.manager import Manager
from benchmarks.systems.ours import Ours
from benchmarks.systems.shapes import SHAPES, draw_delta, make_base
from benchmarks.workload import Work, works
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.recipes import Path as How
from patchbay_server.commands.quiet import silence_libraries

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Round:
    """One system on one work, once. Times are seconds; `cpu` is of all threads of the process."""

    wall: float
    cpu: float
    served: list[Served]


def measure(work: Work, folder: Path, rounds: int, *, warm_up: bool = True) -> list[Line]:
    """A line for each system, with every round. Raises GateFailed."""
    backbone = Backbone.load(folder)
    deltas = {str(n): draw_delta(backbone, work.density, n) for n in range(work.num_deltas)}
    with tempfile.TemporaryDirectory() as scratch, _opened(work, folder, deltas, Path(scratch)) as systems:
        if warm_up:
            short = [Ask(ask.prompt, 2, ask.terms) for ask in work.asks]
            for system in systems.values():
                system.serve(short)
        found: dict[str, list[Round]] = {name: [] for name in systems}
        for number in range(rounds):
            order = list(systems.items())
            for name, system in order if number % 2 == 0 else reversed(order):
                found[name].append(_round(system, work.asks))
                print(f"{work.name}: {name}, round {number + 1} of {rounds}", file=sys.stderr)
        check_tokens(work, {name: rounds[0].served for name, rounds in found.items()}, backbone.model.dtype)
        for system in systems.values():
            if isinstance(system, Ours):
                check_base(system.engine)
        return [_line(work, name, systems[name], rounds) for name, rounds in found.items()]


def _round(system: System, asks: Sequence[Ask]) -> Round:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    served = system.serve(asks)
    return Round(time.perf_counter() - wall, time.process_time() - cpu, served)


def _line(work: Work, name: str, system: System, rounds: Sequence[Round]) -> Line:
    arrivals = [ask.at for ask in work.asks]
    return {
        "kind": "serving",
        "work": work.name,
        "system": name,
        "resident_bytes": system.resident_bytes,
        "num_tokens": sum(ask.max_tokens for ask in work.asks),
        "wall": [each.wall for each in rounds],
        "cpu": [each.cpu for each in rounds],
        "arrivals": arrivals,
        "times": [[one.times for one in each.served] for each in rounds],
    }


@contextmanager
def _opened(work: Work, folder: Path, deltas: Mapping[str, Delta], scratch: Path) -> Iterator[Mapping[str, System]]:
    """Each with weights of its own."""
    systems: dict[str, System] = {}
    try:
        for name in work.systems:
            systems[name] = _open(name, work, folder, deltas, scratch)
        yield systems
    finally:
        for system in systems.values():
            system.close()


def _open(name: str, work: Work, folder: Path, deltas: Mapping[str, Delta], scratch: Path) -> System:
    backbone = Backbone.load(folder)
    if name == "base":
        return _Baseline("base", backbone, {}, None)
    if name in ("decoupled", "patched"):
        return Ours(name, backbone, deltas, How(name))
    if name == "replicas":
        return Replicas(backbone, deltas, work.variants)
    if name == "swap":
        return Swap(backbone, deltas, work.variants, scratch)
    if name == "generate":
        return BaseOnly(backbone.model)
    if name == "manager":
        return Manager(backbone.model)
    kind = Merged if name == "peft-merge" else Mixed
    return kind(backbone.model, work.num_deltas)


class _Baseline(Ours):
    """The same requests without their deltas: the ceiling."""

    def serve(self, asks: Sequence[Ask]) -> list[Served]:
        return super().serve([Ask(ask.prompt, ask.max_tokens, (), ask.at) for ask in asks])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the machine and the table, and writes one line a system and work."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    silence_libraries()
    options.cache.mkdir(parents=True, exist_ok=True)
    folder = make_base(options.shape, options.cache, DTYPES[options.dtype])
    chosen = [work for name, work in works(options.quick).items() if not options.only or name in options.only]
    try:
        exact(make_base("2M" if options.quick else "26M", options.cache, torch.float32))
        lines = [line for work in chosen for line in measure(work, folder, options.rounds)]
    except GateFailed as failure:
        sys.exit(f"no number is worth printing: {failure}")
    head: dict[str, Any] = {**machine(1), "shape": options.shape, "dtype": options.dtype, "threads": options.threads}
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)), "utf-8")
    print(markdown(head, lines))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shape", choices=list(SHAPES), help="default: 110M, with --quick 26M")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: %(default)s")
    parser.add_argument("--rounds", type=int, help="of each system; default: 6, with --quick 2")
    parser.add_argument("--only", nargs="+", metavar="WORK", help="; ".join(works(False)))
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/patchbay-bench/serving").expanduser())
    parser.add_argument("--out", type=Path, help="JSON lines with every token's time")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    options.shape = options.shape or ("26M" if options.quick else "110M")
    options.rounds = options.rounds or (2 if options.quick else 6)
    return options


if __name__ == "__main__":
    main()
