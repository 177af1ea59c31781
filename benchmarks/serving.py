"""Many fine-tunes of one model, served in every way there is, in one run: which answers how fast, from how many bytes.

    python -m benchmarks.serving --quick             # three minutes on two cores
    python -m benchmarks.serving --model 110M
    python -m benchmarks.serving --model trained     # real fine-tunes: what an answer costs and what it is worth
    python -m benchmarks.serving --only base --rounds 20      # what the base alone costs, to within a bound

Weights and deltas of the shapes are random, so nothing is downloaded. Systems take turns, in one order and then in the
other; before any number is printed, all of them have given the same tokens.

Where requests arrive over time, goodput is the answers a second whose first token took at most 5 times, and whose later
ones on average at most twice, as long as on the base when it answers one request at a time, in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.bandwidth import bandwidths
from benchmarks.latencies import Objective, goodput, latencies
from benchmarks.machine import machine
from benchmarks.quality_compression import CACHE
from benchmarks.report_serving import markdown
from benchmarks.resident import resident
from benchmarks.results import Line
from benchmarks.serving_gates import GateFailed, check_base, check_tokens, exact
from benchmarks.systems.base import Ask, Served, System
from benchmarks.systems.models import Drawn, Model
from benchmarks.systems.opened import Setting, open_systems
from benchmarks.systems.ours import Ours
from benchmarks.systems.shapes import SHAPES, make_base, opened
from benchmarks.trained import trained
from benchmarks.workload import Work, works
from patchbay_server.commands.quiet import silence_libraries

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TRAINED = "trained"
WEIGHTS = "model.safetensors"
UNLOADED = 8  # requests that the base answers one at a time


@dataclass(frozen=True, slots=True)
class Round:
    """One system on one work, once. Times are seconds; `cpu` is of all threads of the process."""

    wall: float
    cpu: float
    served: list[Served]


def measure(work: Work, model: Model, rounds: int) -> list[Line]:
    """A line for each system, with every round. Raises GateFailed."""
    backbone = model.load()
    files = model.delta_files(work.num_deltas, work.size)
    deltas = {str(number): opened(file, backbone) for number, file in enumerate(files)}
    common = model.quality(work.num_deltas, work.size) if files else {}
    common["delta_bytes"] = [file.stat().st_size for file in files]
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(model.load, deltas, work.variants, Path(scratch))
        with open_systems(work.systems, setting) as systems:
            found = _rounds(work, systems, rounds)
            check_tokens(work, {name: rounds[0].served for name, rounds in found.items()}, backbone.model.dtype)
            for system in systems.values():
                if isinstance(system, Ours):
                    check_base(system.engine)
            objective = _objective(systems["base"], work.asks) if work.is_open else None
            return [common | _line(work, systems[name], name, found[name], objective) for name in systems]


def _rounds(work: Work, systems: Mapping[str, System], count: int) -> dict[str, list[Round]]:
    """In turns: in one order and then in the other."""
    for system in systems.values():
        system.serve([replace(ask, max_tokens=2, at=0.0) for ask in work.asks])
    found: dict[str, list[Round]] = {name: [] for name in systems}
    for number in range(count):
        order = list(systems.items())
        for name, system in order if number % 2 == 0 else reversed(order):
            found[name].append(_round(system, work.asks))
            print(f"{work.name}: {name}, round {number + 1} of {count}", file=sys.stderr)
    return found


def _round(system: System, asks: Sequence[Ask]) -> Round:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    served = system.serve(asks)
    return Round(time.perf_counter() - wall, time.process_time() - cpu, served)


def _objective(base: System, asks: Sequence[Ask]) -> Objective:
    alone = [base.serve([replace(ask, at=0.0)])[0].times for ask in asks[:UNLOADED]]
    return Objective.beside(alone)


def _line(work: Work, system: System, name: str, rounds: Sequence[Round], objective: Objective | None) -> Line:
    arrivals = [ask.at for ask in work.asks]
    times = [[one.times for one in each.served] for each in rounds]
    line = {
        "kind": "serving",
        "work": work.name,
        "system": name,
        "resident_bytes": system.resident_bytes,
        "num_deltas": work.num_deltas,
        "num_tokens": sum(ask.max_tokens for ask in work.asks),
        "wall": [each.wall for each in rounds],
        "cpu": [each.cpu for each in rounds],
        "arrivals": arrivals,
        "times": times,
        **latencies(times, arrivals),
    }
    if objective is not None:
        line["objective"] = {"first": objective.first, "later": objective.later}
        line["goodput"] = [goodput(served, arrivals, objective) for served in times]
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the machine and the table, and writes one line a system and work."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    silence_libraries()
    cache = options.cache.expanduser()
    model, offered = _chosen(options, cache)
    unknown = set(options.only) - set(offered)
    if unknown:
        sys.exit(f"no such work: {', '.join(sorted(unknown))}; there are: {'; '.join(offered)}")
    head = machine(1) | bandwidths(model.base / WEIGHTS, cache)
    head |= {"model": options.model, "dtype": options.dtype, "threads": options.threads}
    try:
        exact(make_base("2M" if options.quick else "26M", cache / "serving", torch.float32))
        lines = [line for name in options.only or offered for line in measure(offered[name], model, options.rounds)]
    except GateFailed as failure:
        sys.exit(f"no number is worth printing: {failure}")
    if isinstance(model, Drawn):
        lines.append(resident(model))
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)), "utf-8")
    print(markdown(head, lines))


def _chosen(options: argparse.Namespace, cache: Path) -> tuple[Model, Mapping[str, Work]]:
    """What is served, and the works that there are for it."""
    if options.model == TRAINED:
        model = trained(cache, options.dtype, quick=options.quick)
        return model, model.works(options.quick)
    return Drawn(make_base(options.model, cache / "serving", DTYPES[options.dtype])), works(options.quick)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", choices=[*SHAPES, TRAINED], help="default: 110M, with --quick 26M")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: %(default)s")
    parser.add_argument("--rounds", type=int, help="of each system; default: 6, with --quick 2")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORK", help="; ".join(works(False)))
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON lines with every token's time")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    options.model = options.model or ("26M" if options.quick else "110M")
    options.rounds = options.rounds or (2 if options.quick else 6)
    return options


if __name__ == "__main__":
    main()
