"""The demo's digit ViTs: a small image classifier and full fine-tunes of it on four shifted versions of its task.

The head has the base's labels, so it is an ordinary matrix of the delta. Knows nothing of deltas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.families.base import Case, OnProgress, kept_folder, short_hash
from patchbay.checkpoint import Checkpoint
from patchbay_server.demo.tasks import SHIFTED_TASKS, Digits, Task, pixels
from patchbay_server.demo.train import BASE_TRAINING, FINETUNE_TRAINING, Training, finetune, train_base

CALIBRATION = 256  # training images, moved and noised with a seed that no training uses
CALIBRATION_SEED = 1000


@dataclass(frozen=True, slots=True)
class Vision:
    """Digits turned, inverted, mirrored and under grain. Trains in about a minute on one thread."""

    cache: Path
    base_training: Training = BASE_TRAINING
    finetune_training: Training = FINETUNE_TRAINING
    max_test: int = 1000
    max_tasks: int | None = None
    name: str = "vision"

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task.name for task in SHIFTED_TASKS[: self.max_tasks])

    @property
    def _base_folder(self) -> Path:
        return self.cache / f"vision-base-{short_hash(self.base_training)}"

    def has_base(self) -> bool:
        return self._base_folder.is_dir()

    def base(self, on_progress: OnProgress) -> Path:
        return kept_folder(self._base_folder, partial(train_base, on_progress=on_progress, training=self.base_training))

    def case(self, task: str, on_progress: OnProgress) -> Case:
        base = self.base(on_progress)
        key = short_hash(Checkpoint.open(base).fingerprint, self.finetune_training)
        folder = kept_folder(self.cache / f"vision-{task}-{key}", partial(self._build, base, task, on_progress))
        tuned = folder / "model"
        calibration = folder / "calibration.npy"
        return Case(self.name, task, base, tuned, calibration, Checkpoint.open(tuned).fingerprint)

    @torch.inference_mode()
    def logits(self, task: str, model: PreTrainedModel) -> torch.Tensor:
        images = pixels(Digits.load().held_out(_task(task)))[: self.max_test]
        logits: torch.Tensor = model(pixel_values=images).logits
        return logits.float()

    def targets(self, task: str) -> torch.Tensor:
        return torch.from_numpy(Digits.load().held_out_labels)[: self.max_test]

    def probe(self, case: Case) -> None:
        """The base classifies these images itself, so its own accuracy is what a fine-tune has to beat."""

    def _build(self, base: Path, task: str, on_progress: OnProgress, folder: Path) -> None:
        finetune(base, _task(task), folder / "model", on_progress, training=self.finetune_training)
        images = Digits.load().train(_task(task), np.random.default_rng(CALIBRATION_SEED))
        np.save(folder / "calibration.npy", pixels(images[:CALIBRATION]).numpy())


def _task(name: str) -> Task:
    return next(task for task in SHIFTED_TASKS if task.name == name)
