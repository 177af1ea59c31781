"""What an EEG demo learnt, as a picture: a hidden signal and its guess, which lobes a head reads, what it mixes up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from patchbay.models.neuript import Lobe, NeurIPTForEEGClassification, NeurIPTForPreTraining
from patchbay.models.neuript.config import NUM_LOBES
from patchbay.models.neuript.masking import amplitude_mask
from patchbay.models.neuript.montage import Montage
from patchbay.models.neuript.steps import RATE
from patchbay.training.head import features
from patchbay.training.windows import Batches
from patchbay_server.demo.eeg_tasks import CHANNELS, TASKS

HALF = 0.5
ONLY_MASKS = (1.0, 0.0)


def plot(folder: Path, data: Path, file: Path) -> None:
    """Of the first task in `folder`."""
    from matplotlib.figure import Figure  # noqa: PLC0415  of an extra

    task = next(task for task in TASKS if (folder / task.name).is_dir())
    batches = Batches([one.source for one in task.parts(data)["test"]])
    figure = Figure(figsize=(16, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(2.2, 1, 1))
    _draw_reconstruction(left, folder / "base", batches)
    _draw_lobes(middle, folder / task.name, batches, task.name)
    _draw_confusion(right, json.loads((folder / task.name / "outcome.json").read_text("utf-8")), task.name)
    figure.savefig(file, format="png", dpi=150)


def attributions(model: NeurIPTForEEGClassification, batches: Batches) -> dict[str, float]:
    """Lobe -> its share of what moves the head's outputs: the deviation over windows of its part of W x, summed over
    outputs.
    """
    rows = torch.cat(list(features(model, batches))).reshape(len(batches), -1, NUM_LOBES, model.config.hidden_size)
    head = model.classifier
    assert isinstance(head, nn.Linear), "fine-tuning makes no other head"
    weights = head.weight.detach().reshape(-1, *rows.shape[1:])
    parts = torch.einsum("nlkw,clkw->nck", rows, weights)
    moved = parts.std(0, correction=0).sum(0)
    return {lobe.name: float(moved[lobe] / moved.sum()) for lobe in Lobe}


@torch.no_grad()
def _draw_reconstruction(axes: Any, base: Path, batches: Batches) -> None:
    model = NeurIPTForPreTraining.from_pretrained(base)
    model.train(False)
    batch, generator = batches.of([len(batches) // 2]), torch.Generator().manual_seed(0)
    hidden = amplitude_mask(batch["signal"], HALF, generator)
    guess = model(
        batch["signal"], batch["positions"], hidden=hidden, generator=generator, shares=ONLY_MASKS
    ).reconstruction
    time = np.arange(batch["signal"].shape[2]) / RATE
    for row in range(4):
        shown, away = batch["signal"][0, row].numpy(), 8.0 * row
        seen = np.where(hidden[0, row].numpy(), np.nan, shown)
        told = np.where(hidden[0, row].numpy(), guess[0, row].numpy(), np.nan)
        axes.plot(time, shown + away, color="lightgrey", linewidth=1)
        axes.plot(time, seen + away, color="black", linewidth=1.2)
        axes.plot(time, told + away, ".", color="tab:red", markersize=3)
    axes.set_yticks([8.0 * row for row in range(4)], CHANNELS[:4])
    axes.set_ylabel("companded microvolts")
    axes.set_xlabel("seconds")
    axes.set_title("half is hidden (grey), and guessed (red)")


def _draw_lobes(axes: Any, folder: Path, batches: Batches, task: str) -> None:
    model = NeurIPTForEEGClassification.from_pretrained(folder)
    shares, montage = attributions(model, batches), Montage.of(CHANNELS)
    where = montage.positions[:, :2].numpy()
    lobes = [channel.lobes[0].name for channel in montage.channels]
    values = [shares[name] for name in lobes]
    turn = np.linspace(0, 2 * np.pi, 100)
    axes.plot(100 * np.cos(turn), 100 * np.sin(turn) - 15, color="grey")
    axes.plot([-12, 0, 12], [84, 100, 84], color="grey")
    drawn = axes.scatter(where[:, 0], where[:, 1], c=values, s=900, cmap="Blues", vmin=0, edgecolors="black")
    for name, value, (x, y) in zip(CHANNELS, values, where, strict=True):
        axes.annotate(name, (x, y), ha="center", va="center", color=_on(value, values), fontsize=11)
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7, label="its lobe's share of what moves the answer")
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(f"which lobes '{task}' reads")


def _on(value: float, values: npt.ArrayLike) -> str:
    """A colour that is read on the one that `value` has in "Blues" from 0 on."""
    return "white" if value > np.max(values) / 2 else "black"


def _draw_confusion(axes: Any, outcome: dict[str, Any], task: str) -> None:
    table, classes = outcome["confusion"], outcome["classes"]
    axes.imshow(table, cmap="Blues", vmin=0)
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            axes.text(column, row, str(count), ha="center", va="center", color=_on(count, table), fontsize=14)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    axes.set_title(f"'{task}', the full fine-tune")
