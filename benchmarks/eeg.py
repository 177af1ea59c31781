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
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from rich.console import Console

from benchmarks.eeg_latency import latencies
from benchmarks.eeg_masks import masks
from benchmarks.machine import machine
from patchbay.compress.compress import Options as Compression
from patchbay.compress.compress import compress
from patchbay.models.neuript import NeurIPTForEEGClassification
from patchbay.models.neuript.steps import Steps
from patchbay.training.examples import Examples, Parts, Split, classes_of, examples
from patchbay.training.examples import split as divide
from patchbay.training.files import files_in
from patchbay.training.finetune import CALIBRATION, Options, finetune
from patchbay.training.labels import Marks, Rule, Span, by_annotations
from patchbay.training.metrics import metrics
from patchbay.training.pretrain import Options as PreTraining
from patchbay.training.pretrain import Report, pretrain
from patchbay.training.windows import Batches, sources, split
from patchbay_server.commands.output import listing
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.demo.ask import upload
from patchbay_server.demo.process import running_server

CACHE = Path("~/.cache/patchbay-bench/eeg")
CHANNELS = ("F3", "F4", "C3", "Cz", "C4", "Pz", "O1", "O2")
STEPS = Steps(window_seconds=2.0, reference="average", channels=CHANNELS, rejects=False)
PRETRAINING = PreTraining("small", epochs=4, batch_size=8, highest_rate=1e-3, steps=STEPS, report_every=50)
TUNING = Options(epochs=10, highest_rate=1e-4)
BITS = (0.4, 0.1)
EVALUATIONS = 8
HEAD = 7 * 5 * 96 * 4 + 512  # bytes that a head of two classes takes in a delta, at most


@dataclass(frozen=True, slots=True)
class Task:
    """`classes`: of a run's number, or of an annotation's text in the runs that are listed."""

    name: str
    runs: tuple[int, ...]
    classes: Mapping[str, str]

    def rule(self, folder: Path) -> Rule:
        annotated = by_annotations(folder, self.classes)

        def marks(path: Path, opened: Any) -> Marks | None:
            run = path.stem.partition("R")[2]
            if int(run) not in self.runs:
                return None
            if run in self.classes:
                return Marks(path.stem, (Span(0.0, None, self.classes[run]),))
            return annotated(path, opened)

        return marks


TASKS = (
    Task("eyes", (1, 2), {"01": "open", "02": "closed"}),
    Task("fists", (3, 7, 11), {"T1": "left", "T2": "right"}),
    Task("imagined", (6, 10, 14), {"T1": "fists", "T2": "feet"}),
)


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
    cache, started = options.cache.expanduser(), time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    console = Console(width=140)
    base = _once(cache / "base", lambda out: _pretrained(options.data, out, console))
    runs = [(task, seed) for task in TASKS for seed in range(options.seeds if task is TASKS[0] else 1)]
    rows = [_row(task, seed, options.data, base, cache, console) for task, seed in runs]
    merged = _merged(options.data, base, cache, console)
    masked = masks(options.data, STEPS, cache, console)
    waits = latencies(cache, console)
    measured = {"merged": merged, "masks": masked, "latency": waits}
    found = {"machine": machine(1), "rows": [asdict(row) for row in rows], **measured}
    (cache / "eeg.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    _print(rows, merged, console)
    console.print(json.dumps({"masks": masked, "latency": waits}, indent=1))
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes; wrote {cache / 'eeg.json'}", highlight=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of S001R01.edf to S001R14.edf")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="of the eyes' fine-tunes; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: %(default)s")
    return parser.parse_args(arguments)


def _once(out: Path, make: Callable[[Path], None]) -> Path:
    """Made beside its place, so that what is there is whole."""
    if not out.exists():
        fresh = out.with_name(f".{out.name}.new")
        make(fresh)
        fresh.rename(out)
    return out


def _pretrained(data: Path, out: Path, console: Console) -> None:
    first, rest = split(sources(files_in(data), STEPS), 0.5)
    held_out = split(rest, 0.9)[0]  # the first tenth of what nothing is trained on

    def tell(at: Report) -> None:
        console.print(f"pre-training {at.step} of {at.steps}: {at.judged:.3f} of {at.zero:.3f}", highlight=False)

    pretrain(Batches(first), Batches(held_out), out, PRETRAINING, tell)


def _parts(task: Task, data: Path) -> Parts:
    steps = replace(STEPS, stride_seconds=1.0)
    return divide(examples(files_in(data), task.rule(data), steps), Split(validation=0.15, test=0.5))


def _row(task: Task, seed: int, data: Path, base: Path, cache: Path, console: Console) -> Row:
    folder = cache / f"{task.name}-{seed}"
    parts, told = _parts(task, data), folder / "scores.json"

    def tune(out: Path) -> None:
        outcome = finetune(base, parts, replace(STEPS, stride_seconds=1.0), out, replace(TUNING, seed=seed))
        scores = {name: found and found.balanced_accuracy for name, found in outcome.scores.items()}
        (out / told.name).write_text(json.dumps({"scores": scores, "epochs": outcome.epochs}), "utf-8")
        console.print(f"{task.name}, seed {seed}: {scores}", highlight=False)

    _once(folder, tune)
    scores = json.loads(told.read_text("utf-8"))["scores"]
    bits = {f"{each:g} bits": _compressed(base, folder, each) for each in BITS}
    full = _answers_of(folder, parts["test"])
    agreement = {}
    with _client(base, cache) as client:
        for each in BITS:
            upload(client, "tuned", folder / f"{each:g}.delta")
            found = _asked(client, parts["test"], model="tuned")
            agreement[f"{each:g} bits"] = float(np.mean([a == b for a, b in zip(found, full, strict=True)]))
            scores[f"{each:g} bits"] = _balanced(found, parts["test"])
    row = Row(task.name, seed, len(full), scores, agreement, bits)
    console.print(f"{task.name}, seed {seed}: {scores} {agreement} {bits}", highlight=False)
    return row


def _compressed(base: Path, folder: Path, bits: float) -> float:
    """Bits a parameter of the delta without its head."""
    out = folder / f"{bits:g}.delta"
    kept = out.with_suffix(".json")
    if not kept.exists():
        parameters = sum(tensor.numel() for tensor in _model(folder).neuript.parameters())
        target = int(bits * parameters / 8) + HEAD
        options = Compression(target_size=target, evaluations=EVALUATIONS, merge_statistics=bits > 0.2)
        report = compress(base, folder, out, options, calibration=folder / CALIBRATION)
        kept.write_text(json.dumps(report.to_dict()), "utf-8")
    return float(json.loads(kept.read_text("utf-8"))["bits_without_heads"])


def _merged(data: Path, base: Path, cache: Path, console: Console) -> dict[str, float]:
    """Balanced accuracy of one merge of all tasks' deltas, with each head in turn."""
    found = {}
    with _client(base, cache) as client:
        for task in TASKS:
            upload(client, task.name, cache / f"{task.name}-0" / f"{BITS[0]:g}.delta")
        names = ", ".join(task.name for task in TASKS)
        for task in TASKS:
            test = _parts(task, data)["test"]
            answers = _asked(client, test, model=f"neuromerging({names})", head=task.name)
            found[task.name] = _balanced(answers, test)
    console.print(f"neuromerging: {found}", highlight=False)
    return found


def _asked(client: httpx2.Client, test: Sequence[Examples], **body: Any) -> list[str]:
    """Labels of the windows, from whole recordings and where windows begin."""
    labels: list[str] = []
    for one in test:
        asked = {**body, "onsets": list(one.source.windows.starts)}
        file = (one.source.path.name, one.source.path.read_bytes())
        response = client.post("/v1/eeg/classify", files={"request": (None, json.dumps(asked).encode()), "file": file})
        response.raise_for_status()
        labels += [row["label"] for row in response.json()["data"]]
    return labels


def _model(folder: Path) -> Any:
    return NeurIPTForEEGClassification.from_pretrained(folder)


@torch.inference_mode()
def _answers_of(folder: Path, test: Sequence[Examples]) -> list[str]:
    """By transformers alone."""
    model = _model(folder).eval()
    batches = Batches([one.source for one in test])
    found: list[str] = []
    for first in range(0, len(batches), 16):
        rows = model(**batches.of(range(first, min(first + 16, len(batches))))).logits.argmax(1).tolist()
        found += [model.config.id2label[row] for row in rows]
    return found


def _balanced(answers: Sequence[str], test: Sequence[Examples]) -> float:
    classes = classes_of(test)
    wanted = np.array([classes.index(label) for one in test for label in one.labels])
    return metrics(np.eye(len(classes))[[classes.index(answer) for answer in answers]], wanted).balanced_accuracy


@contextmanager
def _client(base: Path, cache: Path) -> Iterator[httpx2.Client]:
    """Of a server that knows no delta yet."""
    shutil.rmtree(cache / "store", ignore_errors=True)
    server = running_server(base, cache / "store", cache / "server.log")
    with server as url, httpx2.Client(base_url=url, timeout=600) as client:
        yield client


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
