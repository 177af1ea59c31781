"""A server under churn for half an hour: does its memory stay flat, and is every error one that was asked for?

    python -m benchmarks.soak --minutes 30 --json

Starts a real `patchbay serve` on a random Llama, with caches small enough to be full within minutes, and clients that
upload, ask, stream, hang up, merge, pin, replace and delete. The first third of the time is warm-up; memory is flat if
the median RSS of the last third is within 5 % of the middle one's. Ends with 1 where it is not, or where anything went
wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import torch

from benchmarks.churn import Tally, churned, wait
from benchmarks.machine import machine
from benchmarks.systems.shapes import SHAPES, draw_delta, make_base
from patchbay.backbone import Backbone
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.demo.process import Running, running_server

CLIENTS = 3
DENSITY = 0.05
TOLERANCE = 0.05  # of the median RSS
# Full within minutes, so that what grows afterwards is no cache.
CACHES = {
    "PATCHBAY_DELTA_CACHE_BYTES": "64MiB",
    "PATCHBAY_PLAN_CACHE_BYTES": "64MiB",
    "PATCHBAY_PREFIX_BYTES": "8MiB",
    "PATCHBAY_KV_BYTES": "32MiB",
}
# When nobody asks any more. Who hung up must not be written for.
ZERO = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "patchbay_engine_restarts_total",
    "patchbay_integrity_failures_total",
)
END_S = 120  # for rounds under way
_KINDS = ("VmRSS", "RssAnon")  # of /proc/PID/status


@dataclass(frozen=True, slots=True)
class Sample:
    """`seconds` after the clients began: resident bytes of the server (of these not backed by files), requests so far,
    and the bytes that its caches say they have.
    """

    seconds: float
    rss: int
    anonymous: int
    requests: int
    caches: int


def sampled(server: Running, seconds: float, requests: int) -> Sample:
    """Raises httpx2.HTTPError, OSError where it is gone."""
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    rss, anonymous = (1024 * int(re.findall(rf"^{name}:\s+(\d+) kB", status, re.M)[0]) for name in _KINDS)
    metrics = httpx2.get(f"{server.url}/metrics", timeout=60).text
    caches = sum(float(found) for found in re.findall(r"^patchbay_\w+_cache_bytes (\S+)$", metrics, re.M))
    return Sample(seconds, rss, anonymous, requests, int(caches))


def complaints_of(server: Running) -> list[str]:
    """What is wrong with it at the end."""
    found = [line for line in server.log.read_text("utf-8").splitlines() if '"level": "info"' not in line]
    if httpx2.get(f"{server.url}/readyz", timeout=60).status_code != 200:
        found.append("it is not ready")
    if not httpx2.post(f"{server.url}/v1/base/verify", timeout=600).json()["ok"]:
        found.append("the base's weights have changed")
    metrics = httpx2.get(f"{server.url}/metrics", timeout=60).text
    for name, value in re.findall(rf"^({'|'.join(ZERO)})(?:{{.*}})? (\S+)$", metrics, re.M):
        if float(value):
            found.append(f"{name} is {value}")
    return found


def soak(shape: str, minutes: float, every: float, cache: Path) -> dict[str, Any]:
    """What happened: `samples`, `requests` by kind, `failures`, and whether memory was flat."""
    base = make_base(shape, cache, torch.float32)
    backbone, tally, stopping = Backbone.load(base), Tally(), Event()
    with tempfile.TemporaryDirectory() as name, _served(base, Path(name)) as server:
        draw = partial(_draw, Path(name), backbone)
        threads = churned(server.url, CLIENTS, draw, tally, stopping)
        try:
            samples = list(_samples(server, tally, minutes, every))
        finally:
            stopping.set()
            if not wait(threads, END_S):
                tally.fail(f"a client still waits for an answer after {END_S} seconds")
        complaints = [f"server: {line}" for line in complaints_of(server)]
    return {
        **machine(1),
        "kind": "soak",
        "shape": shape,
        "minutes": minutes,
        "requests": dict(tally.requests),
        "failures": [*tally.failures, *complaints],
        "memory": flatness([sample.rss for sample in samples]),
        "samples": [asdict(sample) for sample in samples],
    }


def _draw(folder: Path, backbone: Backbone, client: int, number: int) -> Path:
    file = folder / f"drawn-{client}.safetensors"
    return draw_delta(file, backbone, DENSITY, 1_000_000 * client + number, signs=number % 2 == 0)


def _served(base: Path, scratch: Path) -> AbstractContextManager[Running]:
    store, log = scratch / "store", scratch / "server.log"
    return running_server(base, store, log, "--workers", "0", **CACHES, OMP_NUM_THREADS="1")


def _samples(server: Running, tally: Tally, minutes: float, every: float) -> Iterator[Sample]:
    """One `every` seconds until the time is over, or the server gone. Tells how far it is."""
    start, told = time.monotonic(), 0.0
    while (now := time.monotonic() - start) < 60 * minutes and server.process.poll() is None:
        sample = sampled(server, now, tally.total)
        yield sample
        if now - told >= 10:
            told = now
            print(
                f"{now / 60:.1f} of {minutes:g} minutes, {sample.requests:,} requests, {len(tally.failures)} failures, "
                f"RSS {sample.rss >> 20:,} MiB, caches {sample.caches >> 20:,} MiB, eta {minutes - now / 60:.1f} min",
                file=sys.stderr,
            )
        time.sleep(every)


def flatness(rss: Sequence[int]) -> dict[str, Any]:
    """Medians of the middle and the last third, and the change from one to the other."""
    third = max(1, len(rss) // 3)
    middle, last = (statistics.median(part) for part in (rss[third : 2 * third] or rss, rss[-third:]))
    change = last / middle - 1
    return {"middle": middle, "last": last, "change": change, "is_flat": abs(change) <= TOLERANCE}


def summary(report: Mapping[str, Any]) -> str:
    memory, total = report["memory"], sum(report["requests"].values())
    lines = [
        f"{report['minutes']:g} minutes, {total:,} requests ({total / 60 / report['minutes']:.1f} a second)",
        ", ".join(f"{count:,} {kind}" for kind, count in sorted(report["requests"].items())),
        f"RSS {memory['middle'] / 2**20:,.0f} MiB in the middle third, {memory['last'] / 2**20:,.0f} MiB in the last: "
        f"{memory['change']:+.1%}, {'flat' if memory['is_flat'] else 'NOT FLAT'}",
        *(f"FAILED: {failure}" for failure in report["failures"]),
    ]
    return "\n".join(lines)


def draw_plot(samples: Sequence[Mapping[str, float]], file: Path) -> None:
    """Memory above, requests a second below."""
    import matplotlib  # noqa: PLC0415 - an extra, needed for this function only

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    minutes = [sample["seconds"] / 60 for sample in samples]
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(9, 6))
    for field in ("rss", "anonymous", "caches"):
        above.plot(minutes, [sample[field] / 2**20 for sample in samples], label=field)
    for third in (1, 2):
        above.axvline(minutes[-1] * third / 3, color="gray", linewidth=0.5)
    above.set(ylabel="MiB", ylim=(0, None))
    above.legend()
    step = max(1, len(samples) // 60)
    marks = samples[::step]
    rates = [
        (b["requests"] - a["requests"]) / (b["seconds"] - a["seconds"]) for a, b in zip(marks, marks[1:], strict=False)
    ]
    below.plot([sample["seconds"] / 60 for sample in marks[1:]], rates)
    below.set(xlabel="minutes", ylabel="requests a second", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the summary, or with `--json` everything."""
    options = parse(arguments)
    warnings.filterwarnings("ignore")
    silence_libraries()
    torch.set_num_threads(1)
    report = soak(options.shape, options.minutes, options.every, options.cache)
    if options.plot:
        draw_plot(report["samples"], options.plot)
    print(json.dumps(report) if options.json else summary(report))
    if report["failures"] or not report["memory"]["is_flat"]:
        sys.exit(1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=1, help="seconds between samples; default: %(default)s")
    parser.add_argument("--shape", choices=list(SHAPES), default="26M")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/patchbay-bench/serving").expanduser())
    parser.add_argument("--plot", type=Path, help="a .png of memory and rates over time")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
