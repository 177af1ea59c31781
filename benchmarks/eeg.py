"""EEG from recordings to answers: a NeurIPT is pre-trained and fine-tuned for three tasks; its deltas answer over HTTP.

    python -m benchmarks.eeg --data physionet_mi_S001        # half an hour on two cores

`--data` has the runs of one subject of PhysioNet's EEG Motor Movement/Imagery data, S001R01.edf to S001R14.edf (Schalk
et al. 2004, Goldberger et al. 2000). Nothing is ever trained on the last half of a recording; windows are tested there.
Tables: each task by simple means, by the full fine-tune and by its deltas; what masks are easier to fill; how long
answers take. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.eeg_latency import latencies
from benchmarks.eeg_masks import masks
from benchmarks.machine import machine
from patchbay.training.finetune import Options
from patchbay.training.pretrain import Options as PreTraining
from patchbay_server.commands.output import listing
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.demo.ask import upload
from patchbay_server.demo.eeg_stages import (
    agreement,
    answers_of,
    asked,
    balanced_accuracy,
    client_of,
    compressed,
    delta_of,
    merges,
    pretrained,
    tuned,
)
from patchbay_server.demo.eeg_tasks import STEPS, TASKS, Task

CACHE = Path("~/.cache/patchbay-bench/eeg")
PRETRAINING = PreTraining("small", epochs=4, batch_size=8, highest_rate=1e-3, steps=STEPS, report_every=50)
TUNING = Options(epochs=10, highest_rate=1e-4)
BITS = (0.4, 0.1)
EVALUATIONS = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Balanced accuracies on windows of the test part. `agreement`: of a delta with its full fine-tune."""

    task: str
    seed: int
    windows: int
    scores: Mapping[str, float | None]
    agreement: Mapping[str, float]
    bits: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, compresses, serves and measures, as far as the cache does not hold it already."""
    options = parse(arguments)
    silence_libraries()
    torch.set_num_threads(options.threads)
    cache, started, console = options.cache.expanduser(), time.monotonic(), Console(width=140)
    cache.mkdir(parents=True, exist_ok=True)
    base = pretrained(options.data, cache / "base", PRETRAINING, _told(console, "pre-training"))
    runs = [(task, seed) for task in TASKS for seed in range(options.seeds if task is TASKS[0] else 1)]
    rows = [_row(task, seed, options.data, base, cache, console) for task, seed in runs]
    merged = _merged(options.data, base, cache)
    measured = {"merged": merged, "masks": masks(options.data, STEPS, cache, console), "latency": latencies(cache)}
    found = {"machine": machine(1), "rows": [asdict(row) for row in rows], **measured}
    (cache / "eeg.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    _print(rows, merged, console)
    for name in ("masks", "latency"):
        console.print(f"{name}: {measured[name]}", highlight=False)
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes; wrote {cache / 'eeg.json'}", highlight=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of S001R01.edf to S001R14.edf")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="of the eyes' fine-tunes; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: %(default)s")
    return parser.parse_args(arguments)


def _told(console: Console, what: str) -> Any:
    def step(done: int, of: int, note: str) -> None:
        if note and not done % 50:
            console.print(f"{what}: {done} of {of}, {note}", highlight=False)

    return step


def _row(task: Task, seed: int, data: Path, base: Path, cache: Path, console: Console) -> Row:
    folder = cache / f"{task.name}-{seed}"
    outcome = tuned(task, data, base, folder, replace(TUNING, seed=seed), _told(console, f"{task.name} {seed}"))
    scores = {name: found and found["balanced_accuracy"] for name, found in outcome["scores"].items()}
    test, same, bits = task.parts(data)["test"], {}, {}
    full = answers_of(folder, test)
    for each in BITS:
        bits[f"{each:g} bits"] = compressed(base, folder, each, EVALUATIONS, lambda *_: None)["bits_without_heads"]
    with client_of(base, cache) as client:
        for each in BITS:
            upload(client, "tuned", delta_of(folder, each))
            answers = asked(client, test, model="tuned")
            scores[f"{each:g} bits"] = balanced_accuracy(answers, test)
            same[f"{each:g} bits"] = agreement(answers, full)
    console.print(f"{task.name}, seed {seed}: {scores}, agreement {same}, bits {bits}", highlight=False)
    return Row(task.name, seed, len(full), scores, same, bits)


def _merged(data: Path, base: Path, cache: Path) -> dict[str, float]:
    """Balanced accuracy of one merge of all tasks' deltas, with each head in turn."""
    found = {}
    with client_of(base, cache) as client:
        for task in TASKS:
            upload(client, task.name, delta_of(cache / f"{task.name}-0", BITS[0]))
        for task in TASKS:
            test = task.parts(data)["test"]
            found[task.name] = balanced_accuracy(asked(client, test, **merges(TASKS)[task.name]), test)
    return found


def _print(rows: Sequence[Row], merged: Mapping[str, float], console: Console) -> None:
    names = list(rows[0].scores)
    columns = ["task", "windows", *names, *(f"agreement, {name}" for name in rows[0].agreement), "merged"]
    lines = []
    for task in TASKS:
        own = [row for row in rows if row.task == task.name]
        cells = [_spread([row.scores[name] for row in own]) for name in names]
        agreed = [_spread([row.agreement[name] for row in own]) for name in own[0].agreement]
        lines.append([task.name, own[0].windows, *cells, *agreed, f"{merged[task.name]:.3f}"])
    console.print(listing(columns, lines, columns[1:]))


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = f"{sum(known) / len(known):.3f}"
    return middle if min(known) == max(known) else f"{middle} ({min(known):.3f}..{max(known):.3f})"


if __name__ == "__main__":
    main()
