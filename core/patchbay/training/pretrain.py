"""Pre-training NeurIPT by AAMP: from recordings without labels to a folder that anything may be fine-tuned from.

Knows nothing of files of recordings, of the command line and of plots.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForPreTraining
from patchbay.models.neuript.masking import amplitude_mask
from patchbay.models.neuript.steps import Steps
from patchbay.training import checkpoint
from patchbay.training.checkpoint import State
from patchbay.training.schedule import Schedule
from patchbay.training.windows import Batches, Tensors

CLIP = 100.0
JUDGED_RATIO = 0.5
ONLY_MASKS = (1.0, 0.0)
MOST_JUDGED = 256  # held-out windows


@dataclass(frozen=True, slots=True)
class Options:
    """`epochs` of the cycle; `rest` is how many more follow at the low rate (Schedule). Rates are the paper's. `steps`:
    what was done to the recordings; the model's config keeps it.
    """

    size: str = "small"
    epochs: int = 40
    rest: int = 0
    batch_size: int = 16
    highest_rate: float = 3e-4
    weight_decay: float = 5e-3
    seed: int = 520
    steps: Steps = Steps()
    report_every: int = 50
    save_every: int = 200


@dataclass(frozen=True, slots=True)
class Report:
    """`loss`: mean since the last report. `judged`: of held-out windows, half of whose samples are hidden; `zero`: what
    guessing nothing but zeros has there. NaN where nothing is held out.
    """

    step: int
    steps: int
    loss: float
    judged: float
    zero: float
    seconds_left: float


OnReport = Callable[[Report], None]


def pretrain(train: Batches, held_out: Batches, out: Path, options: Options, on_report: OnReport) -> Report:
    """Writes `out` as transformers reads it. What was begun there with the same options goes on, to the same end.

    Raises InputError where the recordings have fewer windows than a batch, or `out` was begun otherwise.
    """
    if len(train) < options.batch_size:
        raise InputError(f"{len(train)} windows are fewer than a batch of {options.batch_size}", param="data")
    training = _Training(train, held_out, out, options)
    report = training.run(on_report)
    training.model.save_pretrained(out)
    return report


class _Training:
    """What a run has in hand. Every step seeds what it draws with its own number, so that it can be done again."""

    def __init__(self, train: Batches, held_out: Batches, out: Path, options: Options) -> None:
        self.train, self.held_out, self.out, self.options = train, held_out, out, options
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = NeurIPTConfig.of_size(options.size, preprocessing=options.steps.to_config())
        self.model = NeurIPTForPreTraining(config).to(self.device)  # type: ignore[arg-type]
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), options.highest_rate, (0.9, 0.98), weight_decay=options.weight_decay
        )
        self.each = len(train) // options.batch_size
        self.schedule = Schedule(options.epochs * self.each, options.rest * self.each, options.highest_rate)
        self.history: list[dict[str, float]] = []
        self._order: tuple[int, list[list[int]]] = (-1, [])  # of an epoch

    def run(self, on_report: OnReport) -> Report:
        asked = json.loads(json.dumps({**asdict(self.options), "windows": len(self.train)}))
        done = checkpoint.restore(self.out, self.model, self.optimiser, asked)
        self.history = done.history if done else []
        begun, first = time.monotonic(), done.step if done else 0
        losses: list[float] = []
        report = self._report(first, losses, 0.0)
        for step in range(first, self.schedule.steps):
            losses.append(self._step(step))
            at, is_last = step + 1, step + 1 == self.schedule.steps
            is_told = is_last or at % self.options.report_every == 0
            if is_told:
                pace = (time.monotonic() - begun) / (at - first)
                report = self._report(at, losses, pace * (self.schedule.steps - at))
                self.history.append({"step": at, "loss": report.loss, "judged": report.judged, "zero": report.zero})
                losses = []
            if is_last or at % self.options.save_every == 0:
                checkpoint.save(self.out, self.model, self.optimiser, State(at, asked, self.history))
            if is_told:
                on_report(report)
        return report

    def _step(self, step: int) -> float:
        options = self.options
        epoch, number = divmod(step, self.each)
        if self._order[0] != epoch:
            self._order = (epoch, list(self.train.epoch(options.batch_size, _seed(options.seed, epoch))))
        batch = self._batch(self.train.of(self._order[1][number]))
        self.model.train()
        torch.manual_seed(_seed(options.seed, step))  # of dropout and the routers' noise
        generator = torch.Generator().manual_seed(_seed(options.seed, step))
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        with self._precision():
            loss = self.model(**batch, generator=generator).loss
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        return float(loss.detach())

    def _report(self, step: int, losses: list[float], left: float) -> Report:
        loss = sum(losses) / len(losses) if losses else float("nan")
        judged, zero = self._judge()
        return Report(step, self.schedule.steps, loss, judged, zero, left)

    @torch.no_grad()
    def _judge(self) -> tuple[float, float]:
        """Masked L1 on held-out windows, always the same ones under the same masks, and that of guessing zeros."""
        self.model.eval()
        errors, zeros, count = 0.0, 0.0, 0
        for number, batch in enumerate(self._judged()):
            generator = torch.Generator().manual_seed(number)
            hidden = amplitude_mask(batch["signal"].cpu(), JUDGED_RATIO, generator).to(self.device)
            with self._precision():
                output = self.model(**batch, hidden=hidden, generator=generator, shares=ONLY_MASKS)
            mask = batch.get("channel_mask")
            counted = hidden if mask is None else hidden & mask[:, :, None]
            rows = int(counted.sum())
            errors += float((output.reconstruction - batch["signal"])[counted].abs().sum())
            zeros += float(batch["signal"][counted].abs().sum())
            count += rows
        return (errors / count, zeros / count) if count else (float("nan"), float("nan"))

    def _judged(self) -> Iterator[Tensors]:
        size = self.options.batch_size
        count = min(len(self.held_out), MOST_JUDGED)
        apart = [round(number * len(self.held_out) / count) for number in range(count)] if count else []
        for first in range(0, count, size):
            yield self._batch(self.held_out.of(apart[first : first + size]))

    def _batch(self, batch: Tensors) -> Tensors:
        return {name: tensor.to(self.device) for name, tensor in batch.items() if name != "lobes"}

    def _precision(self) -> AbstractContextManager[object]:
        on_gpu = self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()


def _seed(seed: int, number: int) -> int:
    """Of the step or epoch with this number: apart from its neighbours' and from those of other runs."""
    return (seed * 1_000_003 + number) % (1 << 62)
