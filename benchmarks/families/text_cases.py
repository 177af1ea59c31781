"""Text tasks as cases: the fine-tunes of `text.py` on a given backbone, and the probe that they have to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.families.base import Case, OnProgress, kept_folder, short_hash
from benchmarks.families.text import Rows, TextTask, Training, finetune, load_task, logits_of, probe_accuracy
from patchbay.checkpoint import Checkpoint

# Measured: where these stop, the fine-tune is past the probe and another epoch adds nothing.
RECIPES = {
    "banking77": Training(epochs=8, learning_rate=2e-4, head_factor=10.0),
    "clinc150": Training(epochs=8, learning_rate=2e-4, head_factor=10.0),
    "subj": Training(epochs=2, learning_rate=5e-5),
}
RECIPE = Training(epochs=3, learning_rate=5e-5)
CALIBRATION = 256  # inputs


@dataclass(frozen=True, slots=True)
class Text:
    """Every folder of `data` with a `train.tsv` and a `test.tsv` is a task, or the `max_tasks` smallest of them;
    `epochs` overrides the recipes'."""

    cache: Path
    data: Path
    backbone: Path
    max_test: int = 1000
    max_tasks: int | None = None
    epochs: int | None = None
    name: str = "text"

    @property
    def tasks(self) -> tuple[str, ...]:
        files = sorted(self.data.glob("*/train.tsv"), key=lambda file: file.stat().st_size)
        names = [file.parent.name for file in files if (file.parent / "test.tsv").is_file()]
        return tuple(sorted(names[: self.max_tasks]))

    def has_base(self) -> bool:
        return True

    def base(self, on_progress: OnProgress) -> Path:
        return self.backbone

    def case(self, task: str, on_progress: OnProgress) -> Case:
        training = RECIPES.get(task, RECIPE)
        training = replace(training, epochs=self.epochs) if self.epochs else training
        data = (self.data / task / "train.tsv").read_bytes()
        key = short_hash(Checkpoint.open(self.backbone).fingerprint, training, data)
        build = partial(self._build, task, training, on_progress)
        folder = kept_folder(self.cache / f"text-{task}-{key}", build)
        tuned = folder / "model"
        calibration = folder / "calibration.txt"
        return Case(self.name, task, self.backbone, tuned, calibration, Checkpoint.open(tuned).fingerprint)

    def logits(self, task: str, model: PreTrainedModel) -> torch.Tensor:
        return logits_of(model, _tokenizer(self.backbone), self._load(task).test.texts)

    def targets(self, task: str) -> torch.Tensor:
        return torch.tensor(self._load(task).test.labels)

    def probe(self, case: Case) -> float:
        return probe_accuracy(self.backbone, self._load(case.task))

    def _load(self, task: str) -> TextTask:
        return _load(self.data / task, self.max_test)

    def _build(self, task: str, training: Training, on_progress: OnProgress, folder: Path) -> None:
        loaded = self._load(task)
        finetune(self.backbone, loaded, folder / "model", training, on_progress)
        lines = [" ".join(text.split()) for text in loaded.held_out.texts[:CALIBRATION]]
        (folder / "calibration.txt").write_text("\n".join(lines) + "\n", "utf-8")


@lru_cache(maxsize=2)
def _load(folder: Path, max_test: int) -> TextTask:
    task = load_task(folder)
    return replace(task, test=Rows(task.test.texts[:max_test], task.test.labels[:max_test]))


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
