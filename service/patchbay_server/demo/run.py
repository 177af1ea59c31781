"""`patchbay demo`: the product's main job on real digits, from training to answers over HTTP. Everything is measured
here.

Train a base; fine-tune it on four shifted tasks; compress each; serve; upload; ask for every combination; report.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx2
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Options, Report, compress
from patchbay.models.inputs import ArrayInput
from patchbay_server.demo.ask import accuracy, request_body, upload, verify
from patchbay_server.demo.display import Step, open_console, prepare, progress, step_of
from patchbay_server.demo.parallel import side_by_side
from patchbay_server.demo.process import running_server
from patchbay_server.demo.report import MergeResult, Results, TaskResult, plot, print_tables, write_json
from patchbay_server.demo.tasks import SHIFTED_TASKS, TASKS, Digits, Task, pixels
from patchbay_server.demo.train import BASE_TRAINING, FINETUNE_TRAINING, Training, evaluate, finetune, train_base

COMPRESSION = Options(density=0.10)
CALIBRATION_IMAGES = 256


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    keep_serving: bool = False,
    as_json: bool = False,
    base_training: Training = BASE_TRAINING,
    finetune_training: Training = FINETUNE_TRAINING,
    calibration_images: int = CALIBRATION_IMAGES,
) -> None:
    """Runs everything in `folder`, new or left by an earlier run. Raises InputError for any other folder."""
    started = time.monotonic()
    console = open_console(stderr=as_json)
    torch.set_num_threads(1)  # see parallel.py
    prepare(folder)
    with progress(console) as bar:
        full = _train(folder, replace(base_training, seed=seed), replace(finetune_training, seed=seed), bar)
        reports = _compress(folder, calibration_images, bar)
        with running_server(folder / "base", folder / "store", folder / "server.log") as server:
            results = _ask_everything(server.url, folder, full, reports, bar)
            bar.stop()
            results = replace(results, seconds=time.monotonic() - started)
            _finish(results, folder, console, as_json)
            if keep_serving:
                _wait(server.url, console)


def _train(folder: Path, base: Training, tuning: Training, bar: Progress) -> dict[str, float]:
    """Accuracy of every full fine-tune on its own task."""
    with step_of(bar, "train the base") as step:
        train_base(folder / "base", step, training=base)
    out, digits = folder / "finetunes", Digits.load()
    labels = torch.from_numpy(digits.held_out_labels)
    with ExitStack() as stack:
        steps = {task.name: stack.enter_context(step_of(bar, f"fine-tune: {task.name}")) for task in SHIFTED_TASKS}
        work = partial(_finetune, base=folder / "base", out=out, training=tuning)
        side_by_side(work, list(steps), lambda name, *step: steps[name](*step))
    return {task.name: evaluate(out / task.name, pixels(digits.held_out(task)), labels) for task in SHIFTED_TASKS}


def _finetune(name: str, step: Step, *, base: Path, out: Path, training: Training) -> None:
    """In a process of its own."""
    finetune(base, next(task for task in TASKS if task.name == name), out / name, step, training=training)


def _compress(folder: Path, calibration_images: int, bar: Progress) -> dict[str, Report]:
    reports = {}
    for task in SHIFTED_TASKS:
        file = folder / "deltas" / f"{task.name}.safetensors"
        with step_of(bar, f"compress: {task.name}") as step:
            reports[task.name] = compress(
                folder / "base",
                folder / "finetunes" / task.name,
                file,
                COMPRESSION,
                calibration=_calibration(task, calibration_images),
                on_progress=step,
            )
    return reports


def _calibration(task: Task, count: int) -> Calibration:
    """Training images without their labels, as the models take them. The held-out images are for scores alone."""
    images = pixels(Digits.load().train(task, np.random.default_rng(1)))[:count]
    return Calibration(tuple(ArrayInput(image) for image in images.numpy()))


def _ask_everything(
    url: str, folder: Path, full: dict[str, float], reports: dict[str, Report], bar: Progress
) -> Results:
    digits, models = Digits.load(), _models()
    with httpx2.Client(base_url=url, timeout=120) as client, step_of(bar, "ask over HTTP") as step:
        for task in SHIFTED_TASKS:
            upload(client, task.name, folder / "deltas" / f"{task.name}.safetensors")
        merges = []
        for done, model in enumerate(models):
            step(done, len(models), model)
            scores = {t.name: accuracy(client, model, digits.held_out(t), digits.held_out_labels) for t in TASKS}
            merges.append(MergeResult(model, scores))
        verified = verify(client)
    by_model = {merge.recipe: merge.accuracy for merge in merges}
    tasks = [
        TaskResult(
            name=task.name,
            base=by_model["base"][task.name],
            full=full[task.name],
            delta=by_model[task.name][task.name],
            bytes=reports[task.name].num_bytes,
            original_bytes=reports[task.name].original_bytes,
            ratio=reports[task.name].ratio,
            bits_per_param=reports[task.name].bits_per_parameter,
        )
        for task in SHIFTED_TASKS
    ]
    return Results(tasks, merges, verified, 0.0)


def _models() -> list[str]:
    """Every `model` that is asked: the base, each delta, half-way to each, and linear merges."""
    names = [task.name for task in SHIFTED_TASKS]
    pairs = [f"linear({a}, {b})" for i, a in enumerate(names) for b in names[i + 1 :]]
    sums = [" + ".join(f"{weight}*{name}" for name in names) for weight in (0.4, 0.5)]
    return ["base", *names, *(f"0.5*{name}" for name in names), *pairs, f"linear({', '.join(names)})", *sums]


def _finish(results: Results, folder: Path, console: Console, as_json: bool) -> None:
    write_json(results, folder / "results.json")
    plot(results, folder / "results.png")
    if as_json:
        print(json.dumps(results.to_dict()))
        return
    console.print()
    print_tables(results, console)
    state = "still bit for bit what was loaded" if results.base_verified else "CHANGED"
    console.print(f"The resident base is {state}. {results.seconds:.0f} s in all.")
    console.print(f"Kept in {folder}/: base, finetunes, deltas, store, results.json, results.png\n", highlight=False)
    _print_continuation(folder, console)


def _print_continuation(folder: Path, console: Console) -> None:
    """The commands that go on from the run's folder, with the request files that they send."""
    digits, task = Digits.load(), SHIFTED_TASKS[0]
    sums = _models()[-1]
    for name, model in (("delta", task.name), ("merge", sums)):
        body = request_body(model, list(digits.held_out(task)[:3]))
        (folder / f"ask-{name}.json").write_text(json.dumps(body) + "\n", "utf-8")
    place, url = shlex.quote(str(folder)), "http://127.0.0.1:8321"
    lines = [
        "Go on from here:",
        f"  {_program()} serve --base {place}/base --store {place}/store",
        f"  curl -s {url}/v1/models",
        f"  curl -s {url}/v1/classify -H 'Content-Type: application/json' -d @{place}/ask-delta.json   # {task.name}",
        f"  curl -s {url}/v1/classify -H 'Content-Type: application/json' -d @{place}/ask-merge.json   # {sums}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


def _program() -> str:
    """`patchbay` as this shell would find it; otherwise the one beside this Python."""
    if shutil.which("patchbay"):
        return "patchbay"
    beside = Path(sys.executable).with_name("patchbay")
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def _wait(url: str, console: Console) -> None:
    console.print(f"\nServing on {url} until Ctrl-C.", highlight=False)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Stopped.")
