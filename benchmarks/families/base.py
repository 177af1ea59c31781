"""What every family of fine-tunes gives a benchmark: cases that are trained once, kept on disk and asked for logits.

Knows nothing of deltas and of how compression is measured.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

OnProgress = Callable[[int, int, str], None]  # (steps done, steps in total, note)


def no_progress(done: int, total: int, note: str) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fine-tune of one base. `calibration` is what `patchbay compress --calibration` reads, inputs that no score
    comes from; `fingerprint` is that of the fine-tune's weights.
    """

    family: str
    task: str
    base: Path
    finetuned: Path
    calibration: Path
    fingerprint: str


class Family(Protocol):
    """A family of tasks on one base. Implementations are small frozen dataclasses: they travel between processes.

    `base` and `case` take minutes the first time and find their folders the next.
    """

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    def has_base(self) -> bool:
        """Whether `base` is a matter of no time."""
        ...

    def base(self, on_progress: OnProgress) -> Path:
        """The folder of the pre-trained model."""
        ...

    def case(self, task: str, on_progress: OnProgress) -> Case:
        """One task's fine-tune."""
        ...

    def logits(self, task: str, model: PreTrainedModel) -> torch.Tensor:
        """fp32 [rows, classes], or [rows, positions, vocabulary] for a language model, on the task's test rows."""
        ...

    def targets(self, task: str) -> torch.Tensor:
        """int64 [rows] or [rows, positions]: what is right."""
        ...

    def probe(self, case: Case) -> float | None:
        """Accuracy of a simple model on the frozen base, which the fine-tune has to beat, where there is one."""
        ...


def kept_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built unless it is there. Built beside it and renamed: it is never there half done."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def short_hash(*parts: object) -> str:
    """12 hex digits of the parts' text: a folder named after its recipe is never mistaken for another recipe's."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
