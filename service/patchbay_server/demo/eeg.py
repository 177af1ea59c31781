"""`patchbay demo --eeg`: from recordings to answers over HTTP, every number measured here.

Pre-train an encoder; fine-tune it for three tasks; compress each; serve; ask with recordings; report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import httpx2
import torch
from rich.console import Console
from rich.progress import Progress

from patchbay.errors import InputError
from patchbay.training.finetune import Options
from patchbay.training.pretrain import Options as PreTraining
from patchbay_server.commands.output import listing
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.demo.ask import upload, verify
from patchbay_server.demo.display import Step, open_console, prepare, progress, step_of
from patchbay_server.demo.eeg_plots import plot
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
    without_dropout,
)
from patchbay_server.demo.eeg_tasks import CHANNELS, STEPS, TASKS, Task, check_runs
from patchbay_server.demo.parallel import side_by_side
from patchbay_server.demo.simulate import simulate

PRETRAINING = PreTraining("small", epochs=1, batch_size=8, highest_rate=1e-3, steps=STEPS, report_every=10)
# Slowly and in small batches: a few dozen windows are few steps, and at ten times the rate the head, which was fitted
# to the encoder as it was, is lost before anything is learnt. To the end: sixteen windows say little of when to stop.
TUNING = Options(epochs=8, patience=8, batch_size=8, highest_rate=1e-5)
BITS = (0.4, 0.1)
EVALUATIONS = 4


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Balanced accuracies on windows that nothing was trained on, by what answers; `agreement` with the full fine-tune,
    `bits` a parameter and `bytes` by the size that was asked for.
    """

    task: str
    windows: int
    scores: Mapping[str, float | None]
    agreement: Mapping[str, float]
    bits: Mapping[str, float]
    bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EegResults:
    is_simulated: bool
    tasks: list[TaskResult]
    base_verified: bool
    seconds: float


def run_eeg_demo(
    folder: Path,
    data: Path | None,
    *,
    seed: int = 0,
    as_json: bool = False,
    pretraining: PreTraining = PRETRAINING,
    tuning: Options = TUNING,
    tasks: Sequence[Task] = TASKS,
) -> None:
    """Runs everything in `folder`, new or left by an earlier run; on made-up recordings where `data` is None.

    Raises InputError before anything is changed for another folder, and for `data` that lies in it or lacks a run.
    """
    started, console = time.monotonic(), open_console(stderr=as_json)
    torch.set_num_threads(1)
    if data is not None:
        if data.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{folder} is emptied first, and the recordings are in it: choose another", param="folder")
        check_runs(data, tasks)
    prepare(folder)
    if data is None:
        simulate(folder / "recordings", CHANNELS, seed=seed)
    recordings = data or folder / "recordings"
    with progress(console) as bar:
        with step_of(bar, "pre-train the base") as step:
            base = pretrained(recordings, folder / "base", replace(pretraining, seed=seed), step)
            without_dropout(base)
        _train_all(tasks, recordings, base, replace(tuning, seed=seed), bar)
        with client_of(base, folder) as client, step_of(bar, "ask over HTTP") as step:
            for task in tasks:
                for number, bits in enumerate(BITS):
                    upload(client, _delta_name(task, number), delta_of(folder / task.name, bits))
            found = []
            for number, task in enumerate(tasks):
                step(number, len(tasks), task.name)
                found.append(_result(task, recordings, folder, tasks, client))
            verified = verify(client)
    results = EegResults(data is None, found, verified, time.monotonic() - started)
    _finish(results, folder, recordings, console, as_json)


def _train_all(tasks: Sequence[Task], data: Path, base: Path, tuning: Options, bar: Progress) -> None:
    """Every task beside the base, in folders of their names."""
    work = partial(_train, tasks=tasks, data=data, base=base, tuning=tuning, sizes=BITS, evaluations=EVALUATIONS)
    with ExitStack() as stack:
        steps = {task.name: stack.enter_context(step_of(bar, f"train and compress: {task.name}")) for task in tasks}
        side_by_side(work, list(steps), lambda name, *step: steps[name](*step))


def _train(
    name: str,
    step: Step,
    *,
    tasks: Sequence[Task],
    data: Path,
    base: Path,
    tuning: Options,
    sizes: Sequence[float],
    evaluations: int,
) -> None:
    """In a process of its own."""
    silence_libraries()
    task, folder = next(task for task in tasks if task.name == name), base.with_name(name)
    tuned(task, data, base, folder, tuning, _named(step, "fine-tune"))
    for bits in sizes:
        compressed(base, folder, bits, evaluations, _named(step, f"{bits:g} bits"))


def _named(step: Step, stage: str) -> Step:
    return lambda done, of, note: step(done, of, f"{stage}: {note}")


def _result(task: Task, data: Path, folder: Path, tasks: Sequence[Task], client: httpx2.Client) -> TaskResult:
    test, own = task.parts(data)["test"], folder / task.name
    outcome = json.loads((own / "outcome.json").read_text("utf-8"))
    scores = {name: found and found["balanced_accuracy"] for name, found in outcome["scores"].items()}
    full, same, bits, sizes = answers_of(own, test), {}, {}, {}
    for number, size in enumerate(BITS):
        answers, title = asked(client, test, model=_delta_name(task, number)), f"{size:g} bits"
        scores[title], same[title] = balanced_accuracy(answers, test), agreement(answers, full)
        report = json.loads(delta_of(own, size).with_suffix(".json").read_text("utf-8"))
        bits[title], sizes[title] = report["bits_without_heads"], report["num_bytes"]
    if len(tasks) > 1:
        scores["merged"] = balanced_accuracy(asked(client, test, **merges(tasks)[task.name]), test)
    return TaskResult(task.name, len(full), scores, same, bits, sizes)


def _delta_name(task: Task, number: int) -> str:
    """The first size's is the task's own."""
    return f"{task.name}-{number}" if number else task.name


def _finish(results: EegResults, folder: Path, data: Path, console: Console, as_json: bool) -> None:
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=2) + "\n", "utf-8")
    plot(folder, data, folder / "results.png")
    if as_json:
        print(json.dumps(asdict(results)))
        return
    console.print()
    print_table(results.tasks, console)
    what = "made-up recordings: what they say of real ones is nothing" if results.is_simulated else "real recordings"
    state = "still bit for bit what was loaded" if results.base_verified else "CHANGED"
    console.print(f"Balanced accuracies on the last half of {what}.")
    console.print(f"The resident base is {state}. {results.seconds:.0f} s in all.")
    console.print(f"Kept in {folder}/: base, fine-tunes with their deltas, results.json, results.png", highlight=False)


def print_table(tasks: Sequence[TaskResult], console: Console) -> None:
    """A column a task."""
    columns = ["", *(one.task for one in tasks)]
    rows = [[name, *(_three(one.scores[name]) for one in tasks)] for name in tasks[0].scores]
    for name in tasks[0].agreement:
        rows.append([f"agreement, {name}", *(_three(one.agreement[name]) for one in tasks)])
        rows.append([f"kB, {name}", *(f"{one.bytes[name] / 1000:.1f}" for one in tasks)])
    console.print(listing(columns, [*rows, ["windows", *(one.windows for one in tasks)]], columns[1:]))


def _three(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
