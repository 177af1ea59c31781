"""The stages from recordings to answers: an encoder is pre-trained, fine-tuned, its fine-tunes compressed, and asked.

Each leaves a folder or a file, and does nothing where it is there. Knows nothing of tables and plots.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch

from patchbay.compress.compress import Options as Compression
from patchbay.compress.compress import Report, compress
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTModel
from patchbay.training.examples import Examples, classes_of
from patchbay.training.files import files_in
from patchbay.training.finetune import CALIBRATION, Options, Outcome, Progress, finetune
from patchbay.training.metrics import metrics
from patchbay.training.pretrain import Options as PreTraining
from patchbay.training.pretrain import Report as PreTrained
from patchbay.training.pretrain import pretrain
from patchbay.training.windows import Batches, sources, split
from patchbay_server.demo.ask import checked
from patchbay_server.demo.display import Step
from patchbay_server.demo.eeg_tasks import OVERLAPPING, Task
from patchbay_server.demo.process import running_server

OUTCOME = "outcome.json"
LEAST_STATISTICS = 0.2  # bits a parameter: below, what merging is told of neurons would be most of the file


def pretrained(data: Path, out: Path, options: PreTraining, step: Step) -> Path:
    """On the first half of every recording, without labels."""

    def make(folder: Path) -> None:
        first, rest = split(sources(files_in(data), options.steps), 0.5)
        held_out = split(rest, 0.9)[0]  # the first tenth of what nothing is trained on

        def tell(at: PreTrained) -> None:
            step(at.step, at.steps, f"{at.judged / at.zero:.3f} of guessing zeros")

        pretrain(Batches(first), Batches(held_out), folder, options, tell)

    return _once(out, make)


def without_dropout(base: Path) -> None:
    """What is fine-tuned from `base` has none: it would change features by more than windows differ, after so short a
    pre-training, and a head that was fitted to them as they are reads noise.
    """
    config = NeurIPTConfig.from_pretrained(base)
    config.dropout = 0.0
    config.save_pretrained(base)


def tuned(task: Task, data: Path, base: Path, out: Path, options: Options, step: Step) -> dict[str, Any]:
    """The outcome, as JSON has it."""

    def make(folder: Path) -> None:
        def tell(at: Progress) -> None:
            step(at.done, at.of, at.note or at.stage)

        outcome: Outcome = finetune(base, task.parts(data), OVERLAPPING, folder, options, tell)
        (folder / OUTCOME).write_text(json.dumps(asdict(outcome)), "utf-8")

    _once(out, make)
    found: dict[str, Any] = json.loads((out / OUTCOME).read_text("utf-8"))
    return found


def compressed(base: Path, folder: Path, bits: float, evaluations: int, step: Step) -> dict[str, Any]:
    """The report on `folder`'s delta of at most so many bits a parameter, its head aside."""
    out = delta_of(folder, bits)
    told = out.with_suffix(".json")
    if not told.exists():
        size = sum(tensor.numel() for tensor in NeurIPTModel.from_pretrained(base).parameters())
        head = compress(base, folder, out, Compression(method="magnitude", density=0.01)).sizes["added"]
        options = Compression(
            target_size=int(bits * size / 8) + head,
            evaluations=evaluations,
            merge_statistics=bits >= LEAST_STATISTICS,
        )
        report: Report = compress(base, folder, out, options, calibration=folder / CALIBRATION, on_progress=step)
        told.write_text(json.dumps(report.to_dict()), "utf-8")
    found: dict[str, Any] = json.loads(told.read_text("utf-8"))
    return found


def delta_of(folder: Path, bits: float) -> Path:
    return folder / f"{bits:g}-bits.delta"


@contextmanager
def client_of(base: Path, scratch: Path) -> Iterator[httpx2.Client]:
    """Of a server that knows no delta yet."""
    shutil.rmtree(scratch / "store", ignore_errors=True)
    started = running_server(base, scratch / "store", scratch / "server.log")
    with started as server, httpx2.Client(base_url=server.url, timeout=600) as client:
        yield client


def asked(client: httpx2.Client, test: Sequence[Examples], **body: Any) -> list[str]:
    """Labels of the windows, from whole recordings and where windows begin."""
    labels: list[str] = []
    for one in test:
        request = json.dumps({**body, "onsets": list(one.source.windows.starts)})
        file = (one.source.path.name, one.source.path.read_bytes())
        answer = client.post("/v1/eeg/classify", files={"request": (None, request.encode()), "file": file})
        labels += [row["label"] for row in checked(answer)["data"]]
    return labels


@torch.inference_mode()
def answers_of(folder: Path, test: Sequence[Examples]) -> list[str]:
    """By transformers alone."""
    model = NeurIPTForEEGClassification.from_pretrained(folder)
    model.train(False)
    labels = dict(model.config.id2label or {})
    batches = Batches([one.source for one in test])
    found: list[str] = []
    for first in range(0, len(batches), 16):
        logits = model(**batches.of(range(first, min(first + 16, len(batches))))).logits
        found += [str(labels[row]) for row in logits.argmax(1).tolist()]
    return found


def balanced_accuracy(answers: Sequence[str], test: Sequence[Examples]) -> float:
    classes = classes_of(test)
    wanted = np.array([classes.index(label) for one in test for label in one.labels])
    return metrics(np.eye(len(classes))[[classes.index(answer) for answer in answers]], wanted).balanced_accuracy


def agreement(answers: Sequence[str], others: Sequence[str]) -> float:
    return float(np.mean([a == b for a, b in zip(answers, others, strict=True)]))


def merges(tasks: Sequence[Task]) -> Mapping[str, dict[str, str]]:
    """Task -> what is asked: one merge of all tasks' deltas, with that task's head."""
    expression = f"neuromerging({', '.join(task.name for task in tasks)})"
    return {task.name: {"model": expression, "head": task.name} for task in tasks}


def _once(out: Path, make: Callable[[Path], None]) -> Path:
    """Made beside its place, so that what is there is whole."""
    if not out.exists():
        fresh = out.with_name(f".{out.name}.new")
        make(fresh)
        fresh.rename(out)
    return out
