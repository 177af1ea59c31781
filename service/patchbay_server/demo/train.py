"""Training for the demo: a small ViT on upright digits, then full fine-tunes of it on the shifted tasks.

What it saves are ordinary Hugging Face folders. It knows nothing of deltas or merging, and prints nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import logging

from patchbay_server.demo.tasks import BASE_TASK, LABELS, MEAN, SIZE, STD, Digits, Task, pixels

OnProgress = Callable[[int, int, str], None]  # (optimiser steps done, steps in total, note)


@dataclass(frozen=True, slots=True)
class Training:
    """AdamW with linear warm-up over the first tenth of the steps, then a cosine to zero."""

    epochs: int
    learning_rate: float
    epsilon: float
    weight_decay: float
    batch_size: int = 64
    seed: int = 0


BASE_TRAINING = Training(epochs=50, learning_rate=1e-3, epsilon=1e-8, weight_decay=0.05)
# Adam with its usual epsilon moves every weight by about as much, whatever its gradient: a task vector that cannot be
# pruned (inverted digits: accuracy .32 at density .10, .99 in full). An epsilon above the typical gradient keeps small
# gradients small, so few entries carry the task; no weight decay, as it would move all of them.
FINETUNE_TRAINING = Training(epochs=40, learning_rate=5e-3, epsilon=1e-2, weight_decay=0.0)


def new_model(seed: int) -> ViTForImageClassification:
    """An untrained ViT of 0.8 M parameters: four patches of 8 x 8 and a class token, so a step takes milliseconds."""
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=SIZE,
        patch_size=SIZE // 2,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.06,  # the usual .02 is for wider models and learns several times slower here
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def train_base(folder: Path, on_progress: OnProgress, *, training: Training = BASE_TRAINING) -> None:
    """Train a new model on upright digits and save it in `folder`. The same seed gives the same weights."""
    model = new_model(training.seed)
    _fit(model, Digits.load(), BASE_TASK, training, on_progress)
    _save(model, folder)


def finetune(
    base_folder: Path,
    task: Task,
    out_folder: Path,
    on_progress: OnProgress,
    *,
    training: Training = FINETUNE_TRAINING,
) -> None:
    """Fine-tune all weights of the model in `base_folder` on `task` and save the result in `out_folder`."""
    model = _load(base_folder)
    _fit(model, Digits.load(), task, training, on_progress)
    _save(model, out_folder)


@torch.inference_mode()
def evaluate(model: Path | ViTForImageClassification, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy in [0, 1] of a model, or of the one saved in a folder, on pixels [N, 1, SIZE, SIZE] and labels [N]."""
    model = _load(model) if isinstance(model, Path) else model
    model.eval()  # type: ignore[no-untyped-call]
    predicted = model(pixel_values=images).logits.argmax(dim=-1)
    return float((predicted == labels).double().mean())


def _fit(
    model: ViTForImageClassification, digits: Digits, task: Task, training: Training, on_progress: OnProgress
) -> None:
    rng = np.random.default_rng(training.seed)
    labels = torch.from_numpy(digits.train_labels)
    steps_per_epoch = len(labels) // training.batch_size
    total = training.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, eps=training.epsilon, weight_decay=training.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, total))
    model.train()
    for epoch in range(training.epochs):
        images = pixels(digits.train(task, rng))
        order = torch.from_numpy(rng.permutation(len(labels)))[: steps_per_epoch * training.batch_size]
        for index, batch in enumerate(torch.split(order, training.batch_size)):
            loss = F.cross_entropy(model(pixel_values=images[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            on_progress(epoch * steps_per_epoch + index + 1, total, f"{task.name}: loss {loss.item():.3f}")


def _schedule(step: int, total: int) -> float:
    """The factor on the learning rate at `step`, counted from 0."""
    warm_up = (step + 1) / max(1.0, 0.1 * total)
    return min(warm_up, 0.5 * (1.0 + math.cos(math.pi * step / total)))


def _save(model: ViTForImageClassification, folder: Path) -> None:
    with _no_progress_bars():
        model.save_pretrained(folder)
    config = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN],
        "image_std": [STD],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load(folder: Path) -> ViTForImageClassification:
    with _no_progress_bars():
        return ViTForImageClassification.from_pretrained(folder, local_files_only=True)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws bars of its own, which would run through the caller's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
