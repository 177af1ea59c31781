"""Pre-training NeurIPT by AAMP: from recordings without labels to a folder that anything may be fine-tuned from.

Knows nothing of files of recordings, of the command line and of plots.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForPreTraining, NeurIPTOutput, PreTrainingOutput
from patchbay.models.neuript.masking import amplitude_mask
from patchbay.models.neuript.steps import Steps
from patchbay.training import checkpoint
from patchbay.training.accumulate import Usages, accumulate, parts_of, seed_of
from patchbay.training.checkpoint import State
from patchbay.training.memory import Plan, check_fits, give_back_at_once, plan_for
from patchbay.training.schedule import Schedule
from patchbay.training.windows import Batches, Tensors, rows_of

CLIP = 100.0
JUDGED_RATIO = 0.5
ONLY_MASKS = (1.0, 0.0)
MOST_JUDGED = 256  # held-out windows
LOWER = "take a smaller --size, fewer --channels or shorter --window-seconds"


@dataclass(frozen=True, slots=True)
class Options:
    """`epochs` of the cycle; `rest` is how many more follow at the low rate (Schedule). Rates are the paper's. `steps`:
    what was done to the recordings; the model's config keeps it. Of all steps every so many are told of
    (`report_every`) or kept in a checkpoint (`save_every`).
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
OnStep = Callable[[int, int], bool]


def pretrain(
    train: Batches,
    held_out: Batches,
    out: Path,
    options: Options,
    on_report: OnReport,
    on_step: OnStep = lambda *_: True,
) -> Report:
    """Writes `out` as transformers reads it. What was begun there with the same options goes on, to the same end.
    `on_step(done, of)` says after every step whether to go on.

    Raises KeyboardInterrupt where it does not, with all steps so far in a checkpoint. Raises InputError where the
    recordings have fewer windows than a batch, `out` was begun otherwise or has something else, where training takes
    more memory than there is, and where the loss is no number any more.
    """
    checkpoint.check_out(out, goes_on=True)
    if len(train) < options.batch_size:
        raise InputError(f"{len(train)} windows are fewer than a batch of {options.batch_size}", param="data")
    training = _Training(train, held_out, out, options)
    report = training.run(on_report, on_step)
    training.model.save_pretrained(out)
    return report


class _Training:
    """What a run has in hand. Every step seeds what it draws with its own number, so that it can be done again."""

    def __init__(self, train: Batches, held_out: Batches, out: Path, options: Options) -> None:
        self.train, self.held_out, self.out, self.options = train, held_out, out, options
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = NeurIPTConfig.of_size(options.size, preprocessing=options.steps.to_config())
        self.plan = _plan(config, train.largest, self.device)
        self.model = NeurIPTForPreTraining(config).to(self.device)  # type: ignore[arg-type]
        self.model.neuript.recomputes = self.plan.recomputes
        if self.plan.rows < options.batch_size:
            give_back_at_once()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), options.highest_rate, (0.9, 0.98), weight_decay=options.weight_decay
        )
        self.each = len(train) // options.batch_size
        self.schedule = Schedule(options.epochs * self.each, options.rest * self.each, options.highest_rate)
        self.history: list[dict[str, float]] = []
        self._order: tuple[int, list[list[int]]] = (-1, [])  # of an epoch

    def run(self, on_report: OnReport, on_step: OnStep) -> Report:
        asked = json.loads(json.dumps({**asdict(self.options), "windows": len(self.train)}))
        done = checkpoint.restore(self.out, self.model, self.optimiser, asked)
        self.history = done.history if done else []
        begun, first = time.monotonic(), done.step if done else 0
        losses = done.untold if done else []
        report = None
        if first == self.schedule.steps:
            report = self._report(first, [self.history[-1]["loss"]], 0.0)
        for step in range(first, self.schedule.steps):
            losses.append(self._step(step))
            at, is_last = step + 1, step + 1 == self.schedule.steps
            is_told = is_last or at == 1 or at % self.options.report_every == 0
            if is_told:
                pace = (time.monotonic() - begun) / (at - first)
                report = self._report(at, losses, pace * (self.schedule.steps - at))
                self.history.append({"step": at, "loss": report.loss, "judged": report.judged, "zero": report.zero})
                losses = []
            goes_on = on_step(at, self.schedule.steps) or is_last
            if is_last or not goes_on or at % self.options.save_every == 0:
                checkpoint.save(self.out, self.model, self.optimiser, State(at, asked, self.history, losses))
            if is_told and report is not None:
                on_report(report)
            if not goes_on:
                raise KeyboardInterrupt
        assert report is not None, "the last step is told of"
        return report

    def _step(self, step: int) -> float:
        options = self.options
        epoch, number = divmod(step, self.each)
        if self._order[0] != epoch:
            self._order = (epoch, list(self.train.epoch(options.batch_size, seed_of(options.seed, epoch))))
        batch = self._batch(self.train.of(self._order[1][number]))
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._backward(batch, step)
        if not math.isfinite(loss):
            text = f"the loss is {loss} in step {step + 1}: take a lower --rate, and another --out"
            raise InputError(text, param="rate")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        return loss

    def _backward(self, batch: Tensors, step: int) -> float:
        seed = self.options.seed
        drawn = self.model.draw(batch["signal"], generator=torch.Generator().manual_seed(seed_of(seed, step)))
        parts = parts_of(len(drawn.hidden), self.plan.rows)
        counts = [int(_counted(drawn.hidden[part], rows_of(batch, part)).sum()) for part in parts]

        def usages_of(part: slice) -> Usages | None:
            rows = rows_of(batch, part)
            with self._precision():
                found: NeurIPTOutput = self.model.encode(drawn.rows(part), rows["positions"], rows.get("channel_mask"))
            return found.usages

        def output_of(part: slice, elsewhere: Usages | None) -> PreTrainingOutput:
            with self._precision():
                found: PreTrainingOutput = self.model(
                    **rows_of(batch, part), given=drawn.rows(part), elsewhere=elsewhere
                )
            return found

        shares = [count / sum(counts) for count in counts]
        weight = self.model.config.auxiliary_weight
        # Of dropout and the routers' noise.
        return accumulate(parts, shares, usages_of, output_of, weight, lambda part: seed_of(seed, step, part))

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
            for part in parts_of(len(hidden), self.plan.rows):
                rows = rows_of(batch, part)
                with self._precision():
                    output = self.model(**rows, hidden=hidden[part], generator=generator, shares=ONLY_MASKS)
                counted = _counted(hidden[part], rows)
                errors += float((output.reconstruction - rows["signal"])[counted].abs().sum())
                zeros += float(rows["signal"][counted].abs().sum())
                count += int(counted.sum())
        return (errors / count, zeros / count) if count else (float("nan"), float("nan"))

    def _judged(self) -> Iterator[Tensors]:
        size, apart = self.options.batch_size, self.held_out.apart(MOST_JUDGED)
        for first in range(0, len(apart), size):
            yield self._batch(self.held_out.of(apart[first : first + size]))

    def _batch(self, batch: Tensors) -> Tensors:
        return {name: tensor.to(self.device) for name, tensor in batch.items() if name != "lobes"}

    def _precision(self) -> AbstractContextManager[object]:
        on_gpu = self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()


def _plan(config: NeurIPTConfig, windows: tuple[int, int], device: torch.device) -> Plan:
    """Raises InputError where there is not as much memory as it takes."""
    with torch.device("meta"):
        parameters = sum(each.numel() for each in NeurIPTForPreTraining(config).parameters())
    plan = plan_for(config, parameters, windows, decodes=True, device=device)
    check_fits(plan, windows, device, LOWER)
    return plan


def _counted(hidden: torch.Tensor, rows: Tensors) -> torch.Tensor:
    """Hidden samples of real channels."""
    mask = rows.get("channel_mask")
    return hidden if mask is None else hidden & mask[:, :, None]
