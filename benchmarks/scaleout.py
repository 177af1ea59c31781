"""One and two replicas on this machine, and many in a simulation that is calibrated with what was measured.

    python -m benchmarks.scaleout --plot benchmarks/scaleout.png --json

Starts a real `patchbay serve` on a random Llama: alone, with `--replicas 2`, and again to kill one of the two while a
thousand requests are under way. What is simulated is `benchmarks.fleet`. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import torch

from benchmarks.answering import Server, ask_all, served, upload
from benchmarks.fleet import Load, Machine, Policy, simulate
from benchmarks.latencies import shown
from benchmarks.machine import machine
from benchmarks.systems.shapes import SHAPES, draw_delta, make_base
from patchbay.backbone import Backbone
from patchbay_server.commands.quiet import silence_libraries

DELTAS, REQUESTS, CLIENTS = 20, 1000, 8
DENSITY = 0.05
READY_S, HITS = 60.0, 0.95  # the bars
BACK_S = 120.0  # for a killed replica to be there again
TOGETHER = (1, 2, 4, 8, 16, 32)  # requests under way, for the calibration
REPLICAS = (1, 2, 4, 8, 16, 32, 64)
COUNTS = (10, 100, 1000, 10_000)  # of deltas
USED = 0.6  # of what all replicas can do
ROOM = 100  # deltas that fit into a replica's memory


def drawn(count: int, seed: int) -> list[int]:
    """Deltas by Zipf's law with exponent 1."""
    weights = [1 / (rank + 1) for rank in range(DELTAS)]
    return random.Random(seed).choices(range(DELTAS), weights, k=count)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{p}": ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))] for p in (50, 95, 99)}


def measure(server: Server, files: Sequence[Path]) -> dict[str, Any]:
    """One at a time and many at a time, by Zipf's law over all deltas, the first request for each included."""
    upload(server, files)
    answers, seconds = ask_all(server, drawn(REQUESTS, 0), CLIENTS)
    misses = server.count("patchbay_delta_cache_misses_total")
    alone, _ = ask_all(server, drawn(200, 1), 1)
    return {
        "ready_s": server.ready_s,
        "failed": sum(each is None for each in answers),
        "requests_s": REQUESTS / seconds,
        "many": percentiles([each for each in answers if each is not None]),
        "alone": percentiles([each for each in alone if each is not None]),
        "hit_rate": 1 - misses / REQUESTS,
        "routed": {why: server.count("patchbay_routed_total", outcome=why) for why in ("hit", "cold", "spilled")},
    }


def kill_one(server: Server, files: Sequence[Path]) -> dict[str, Any]:
    """The busiest of the replicas is killed while a thousand requests go on, and comes back."""
    upload(server, files)
    ask_all(server, list(range(DELTAS)), CLIENTS)
    before, killed = server.replicas(), []

    def kill() -> None:
        killed.append(time.perf_counter())
        os.kill(before[0], signal.SIGKILL)

    timer = Timer(1.0, kill)
    timer.start()
    answers, seconds = ask_all(server, drawn(REQUESTS, 2), CLIENTS)
    timer.join()
    while len(now := server.replicas()) < len(before) or before[0] in now or server.count("patchbay_replicas") < 2:
        if time.perf_counter() - killed[0] > BACK_S:
            break
        time.sleep(0.5)
    return {
        "failed": sum(each is None for each in answers),
        "seconds": seconds,
        "slowest_s": max((each for each in answers if each is not None), default=0.0),
        "lost": server.count("patchbay_replicas_lost_total"),
        "two_again_s": time.perf_counter() - killed[0],
    }


def calibrate(server: Server, files: Sequence[Path]) -> Machine:
    """Of the server of a single process: `speeds` by so many clients at a time, `load_s` by deltas that it had not."""
    rates = []
    for count in TOGETHER:
        answers, seconds = ask_all(server, drawn(max(50, 10 * count), count), count)
        rates.append(len(answers) / seconds)
    misses, spent = (server.count(f"patchbay_delta_load_seconds_{what}") for what in ("count", "sum"))
    speeds = tuple(rate / rates[0] for rate in rates)
    return Machine(1 / rates[0], speeds, spent / misses, sum(file.stat().st_size for file in files) // len(files), ROOM)


def simulated(found: Machine, requests: int) -> list[dict[str, Any]]:
    """Every number of replicas with every number of deltas, by affinity and without."""
    lines = []
    for deltas in COUNTS:
        for replicas in REPLICAS:
            load = Load(requests, USED * replicas * found.most_per_s, deltas)
            for policy in Policy:
                result = simulate(found, load, replicas, policy)
                lines.append(
                    {
                        "deltas": deltas,
                        "replicas": replicas,
                        "policy": policy.value,
                        "hit_rate": result.hit_rate,
                        "p99_s": result.percentile(99),
                        "bytes_a_request": result.loads * found.delta_bytes / requests,
                    }
                )
        print(f"simulated {deltas:,} deltas", file=sys.stderr)
    return lines


def run(shape: str, requests: int, cache: Path) -> dict[str, Any]:
    """Everything: `one` and `two` replicas, one of two `killed`, `machine_model` and what was `simulated` with it."""
    base = make_base(shape, cache, torch.float32)
    backbone = Backbone.load(base)
    report: dict[str, Any] = {**machine(1), "kind": "scaleout", "shape": shape}
    with tempfile.TemporaryDirectory() as name:
        scratch = [Path(name) / part for part in ("deltas", "one", "two", "killed")]
        for folder in scratch:
            folder.mkdir()
        files = [draw_delta(scratch[0] / f"{n}.safetensors", backbone, DENSITY, n) for n in range(DELTAS)]
        with served(base, scratch[1], 1) as server:
            report["one"] = measure(server, files)
            found = calibrate(server, files)
        with served(base, scratch[2], 2) as server:
            report["two"] = measure(server, files)
        with served(base, scratch[3], 2) as server:
            report["killed"] = kill_one(server, files)
    report["calibration"] = {"alone_s": found.alone_s, "speeds": found.speeds, "load_s": found.load_s}
    report["simulated"] = simulated(found, requests)
    two, killed = report["two"], report["killed"]
    report["bars"] = {
        "ready": two["ready_s"] < READY_S,
        "none failed": two["failed"] == killed["failed"] == 0,
        "hits": two["hit_rate"] >= HITS,
    }
    return report


def summary(report: Mapping[str, Any]) -> str:
    """Markdown."""
    rows = [
        "| replicas | ready, s | requests/s | 8 clients, p50 / p95 / p99 ms | one client, p50 / p95 / p99 ms | hits |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("one", "two"):
        of = report[name]
        times = f"{shown(of['many'], 1e-3, 1)} | {shown(of['alone'], 1e-3, 1)}"
        rows.append(f"| {name} | {of['ready_s']:.1f} | {of['requests_s']:.0f} | {times} | {of['hit_rate']:.1%} |")
    killed = report["killed"]
    rows += [
        "",
        f"Killed: {killed['failed']} of {REQUESTS:,} requests failed, {killed['lost']:.0f} were asked again, the "
        f"slowest took {killed['slowest_s']:.2f} s; two replicas again after {killed['two_again_s']:.0f} s.",
        "",
        *(f"BAR MISSED: {bar}" for bar, is_met in report["bars"].items() if not is_met),
    ]
    return "\n".join(rows)


def draw_plot(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Hit rate, p99 and bytes a request over the number of replicas; a colour for each number of deltas."""
    import matplotlib  # noqa: PLC0415 - an extra, needed for this function only

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    shown_fields = (
        ("hit_rate", 100, "hits, %"),
        ("p99_s", 1000, "p99, ms"),
        ("bytes_a_request", 1e-3, "kB moved a request"),
    )
    for axis, (name, unit, label) in zip(axes, shown_fields, strict=True):
        for number, deltas in enumerate(COUNTS):
            for policy, style in ((Policy.AFFINITY, "-"), (Policy.LEAST_LOAD, ":")):
                of = [line for line in lines if (line["deltas"], line["policy"]) == (deltas, policy.value)]
                points = [line["replicas"] for line in of], [unit * line[name] for line in of]
                axis.plot(*points, style, color=f"C{number}", label=f"{deltas:,}" if style == "-" else None)
        axis.set(xlabel="replicas", ylabel=label, xscale="log")
        axis.set_xticks(REPLICAS, list(map(str, REPLICAS)))
    axes[1].set(yscale="log")
    axes[0].legend(title="deltas (dotted: least load)")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the summary, or with `--json` everything."""
    options = parse(arguments)
    warnings.filterwarnings("ignore")
    silence_libraries()
    torch.set_num_threads(1)
    report = run(options.shape, options.requests, options.cache)
    if options.plot:
        draw_plot(report["simulated"], options.plot)
    print(json.dumps(report) if options.json else summary(report))
    if not all(report["bars"].values()):
        sys.exit(1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaleout", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shape", choices=list(SHAPES), default="2M")
    parser.add_argument("--requests", type=int, default=20_000, help="of each simulation; default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/patchbay-bench/serving").expanduser())
    parser.add_argument("--plot", type=Path, help="a .png of the simulation")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
