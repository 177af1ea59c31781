"""Fine-tuning NeurIPT: a head on the encoder as it is, then both together from there.

The head comes first because a random one would bend the encoder before it is of any use. Knows nothing of files of
recordings, of the command line and of plots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from patchbay.errors import InputError
from patchbay.models.neuript import EEGClassifierOutput, NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTOutput
from patchbay.models.neuript.steps import Steps
from patchbay.training import doubts
from patchbay.training.accumulate import Usages, accumulate, parts_of, seed_of
from patchbay.training.band_power import discriminant
from patchbay.training.base import encoder_of
from patchbay.training.checkpoint import check_out
from patchbay.training.examples import PARTS, Examples, Parts, classes_of
from patchbay.training.head import features, fit_head
from patchbay.training.memory import check_fits, give_back_at_once, plan_for
from patchbay.training.metrics import Classes, Metrics, Probabilities, balanced_accuracy, confusion, majority, metrics
from patchbay.training.schedule import Schedule
from patchbay.training.windows import Batches, Tensors, rows_of

CLIP = 1.0
CALIBRATION = "calibration.safetensors"
MOST_CALIBRATION = 256
MOST_ROWS = 32  # of answers at once
LOWER = "read fewer --channels, or shorter --window-seconds"


@dataclass(frozen=True, slots=True)
class Options:
    """`epochs` at most, of everything together; 0 leaves the encoder as it is. It ends when the balanced accuracy in
    validation has not risen for `patience` of them, and the best epoch is kept: of equals the likeliest.
    `prior_strength`: K of the loss.
    """

    epochs: int = 20
    patience: int = 5
    batch_size: int = 16
    highest_rate: float = 3e-4
    weight_decay: float = 5e-3
    prior_strength: float = 0.0
    seed: int = 520


@dataclass(frozen=True, slots=True)
class Progress:
    """`stage`: `features` or `training`. `note`: what is known of the last epoch."""

    stage: str
    done: int
    of: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`scores` on the test part by name: `majority`, `band power + LDA` (None where recordings differ in their
    channels), `head alone` and `fine-tuned`, where that was asked for. `confusion` [class, answer] is of the last.
    `epochs` were run, and the weights are those after the epoch `kept`, 0 being the head alone; None in `history` is
    what was not measured. `warnings`: why it may be of little use.
    """

    classes: tuple[str, ...]
    windows: Mapping[str, int]
    scores: Mapping[str, Metrics | None]
    confusion: list[list[int]]
    epochs: int
    kept: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


OnProgress = Callable[[Progress], None]


def finetune(
    base: Path, parts: Parts, steps: Steps, out: Path, options: Options, on_progress: OnProgress = lambda _: None
) -> Outcome:
    """Writes `out` as transformers reads it, with unlabelled training windows that compression can be calibrated on.

    Raises InputError where `base` is no pre-trained NeurIPT with all of its weights, where something is in `out`
    already, and where training takes more memory than there is.
    """
    check_out(out, goes_on=False)
    classes = classes_of(one for ones in parts.values() for one in ones)
    torch.manual_seed(options.seed)
    data = {part: _Data(parts[part], classes) for part in PARTS}
    model = _model(base, classes, data["train"].classes, steps, options)
    training = _Training(model, data, options, on_progress)
    training.fit_head()
    scores: dict[str, Metrics | None] = {
        "majority": metrics(majority(data["train"].classes, len(classes), len(data["test"])), data["test"].classes),
        "band power + LDA": _band_power(parts, data),
        "head alone": metrics(training.answers("test"), data["test"].classes),
    }
    if options.epochs:
        training.run()
    answers = training.answers("test")
    if options.epochs:
        scores["fine-tuned"] = metrics(answers, data["test"].classes)
    model.save_pretrained(out)
    save_file(data["train"].batches.of(data["train"].batches.apart(MOST_CALIBRATION)), out / CALIBRATION)
    counts = {part: len(each) for part, each in data.items()}
    table = confusion(answers, data["test"].classes)
    lacking = doubts.of_validation(classes, {classes[number] for number in data["validation"].classes})
    warnings = (*lacking, *training.warnings, *doubts.of_scores(scores))
    return Outcome(classes, counts, scores, table, len(training.history), training.kept, training.history, warnings)


class _Data:
    """One part: its windows and the numbers of their classes."""

    def __init__(self, found: Sequence[Examples], classes: Sequence[str]) -> None:
        number = {name: place for place, name in enumerate(classes)}
        self.batches = Batches([one.source for one in found])
        self.classes: Classes = np.array([number[label] for one in found for label in one.labels], np.int64)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def targets(self) -> torch.Tensor:
        return torch.from_numpy(self.classes)


class _Training:
    def __init__(
        self, model: NeurIPTForEEGClassification, data: Mapping[str, _Data], options: Options, on_progress: OnProgress
    ) -> None:
        self.model, self.data, self.options, self.on_progress = model, data, options, on_progress
        self.history: list[dict[str, Any]] = []
        self.kept, self.warnings = 0, list[str]()
        windows = max(each.batches.largest for each in data.values())
        parameters = sum(each.numel() for each in model.parameters())
        assert isinstance(model.config, NeurIPTConfig)
        plan = plan_for(model.config, parameters, windows, decodes=False, device=model.device)
        check_fits(plan, windows, model.device, LOWER)
        self.rows, model.neuript.recomputes = plan.rows, plan.recomputes
        if plan.rows < options.batch_size:
            give_back_at_once()

    def fit_head(self) -> None:
        found, done, of = [], 0, sum(len(self.data[part]) for part in PARTS[:2])
        for part in PARTS[:2]:
            rows = []
            for each in features(self.model, self.data[part].batches, min(self.rows, MOST_ROWS)):
                rows.append(each)
                done += len(each)
                self.on_progress(Progress("features", done, of))
            found.append((torch.cat(rows) if rows else torch.zeros(0, 1), self.data[part].targets))
        if not all(torch.isfinite(rows).all() for rows, _ in found):
            raise InputError("the base answers NaN or infinity: its training has diverged, take another", param="base")
        fit_head(self.model, found[0], found[1])

    def run(self) -> None:
        """The best epoch's weights are in the model after it."""
        options, train = self.options, self.data["train"]
        each = -(-len(train) // options.batch_size)
        schedule = Schedule(options.epochs * each, 0, options.highest_rate)
        optimiser = torch.optim.AdamW(
            self.model.parameters(), options.highest_rate, (0.9, 0.98), weight_decay=options.weight_decay
        )
        is_compared = len(self.data["validation"]) > 0
        best, weights = self._judge(), _copied(self.model)
        for epoch in range(1, options.epochs + 1):
            loss = self._epoch(epoch, optimiser, schedule)
            judged = self._judge() if math.isfinite(loss) and self._is_finite() else None
            self.history.append(
                {"epoch": epoch, "loss": loss, "validation": judged[0] if judged and is_compared else None}
            )
            if judged is None:
                self.warnings.append(f"the training diverged in epoch {epoch}, and ended: take a lower --rate")
                break
            if judged > best or not is_compared:
                best, self.kept, weights = judged, epoch, _copied(self.model)
            note = f"loss {loss:.3f}" + (f", validation {judged[0]:.3f}" if is_compared else "")
            self.on_progress(Progress("training", epoch * each, options.epochs * each, note))
            if epoch - self.kept >= options.patience:
                break
        self.model.load_state_dict(weights)
        self.warnings += doubts.of_epochs(self.history, self.kept, best[0], len(set(self.data["validation"].classes)))

    @torch.no_grad()
    def answers(self, part: str) -> Probabilities:
        """Of its windows, [windows, classes]."""
        self.model.train(False)
        batches = self.data[part].batches
        found, size = [], min(self.rows, MOST_ROWS)
        for first in range(0, len(batches), size):
            found.append(self._answers(batches, range(first, min(first + size, len(batches)))))
        return np.concatenate(found) if found else np.zeros((0, 1))

    def _answers(self, batches: Batches, numbers: Sequence[int]) -> Probabilities:
        logits: torch.Tensor = self.model(**self._batch(batches, numbers)).logits
        return torch.softmax(logits.double(), 1).cpu().numpy()

    @torch.no_grad()
    def _is_finite(self) -> bool:
        """The weights, and what they answer to a window."""
        self.model.train(False)
        weights = all(bool(each.isfinite().all()) for each in self.model.parameters())
        return weights and bool(np.isfinite(self._answers(self.data["train"].batches, range(1))).all())

    def _epoch(self, epoch: int, optimiser: torch.optim.Optimizer, schedule: Schedule) -> float:
        train, size = self.data["train"], self.options.batch_size
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.options.seed + epoch)).tolist()
        each, losses = -(-len(train) // size), 0.0
        for number in range(each):
            step = (epoch - 1) * each + number
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step)
            losses += self._step(order[number * size : (number + 1) * size], optimiser, step)
            self.on_progress(Progress("training", step + 1, schedule.steps))
        return losses / each

    def _step(self, numbers: Sequence[int], optimiser: torch.optim.Optimizer, step: int) -> float:
        self.model.train()
        train = self.data["train"]
        batch = self._batch(train.batches, numbers)
        batch["labels"] = train.targets[list(numbers)].to(self.model.device)
        optimiser.zero_grad(set_to_none=True)
        loss = self._backward(batch, step)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        optimiser.step()
        return loss

    def _backward(self, batch: Tensors, step: int) -> float:
        def usages_of(part: slice) -> Usages | None:
            rows = rows_of(batch, part)
            found: NeurIPTOutput = self.model.neuript(rows["signal"], rows["positions"], rows.get("channel_mask"))
            return found.usages

        def output_of(part: slice, elsewhere: Usages | None) -> EEGClassifierOutput:
            found: EEGClassifierOutput = self.model(**rows_of(batch, part), elsewhere=elsewhere)
            return found

        count = len(batch["labels"])
        parts = parts_of(count, self.rows)
        shares = [(part.stop - part.start) / count for part in parts]
        weight, seed = self.model.config.auxiliary_weight, self.options.seed
        return accumulate(parts, shares, usages_of, output_of, weight, lambda part: seed_of(seed, step, part))

    def _judge(self) -> tuple[float, float]:
        """Balanced accuracy and log-likelihood in validation, of which there may be none: the larger the better."""
        data = self.data["validation"]
        if not len(data):
            return 0.0, 0.0
        answers = self.answers("validation")
        likelihood = float(np.log(answers[np.arange(len(data)), data.classes] + 1e-12).mean())
        return balanced_accuracy(answers, data.classes), likelihood

    def _batch(self, batches: Batches, numbers: Sequence[int]) -> Tensors:
        return {name: tensor.to(self.model.device) for name, tensor in batches.of(numbers).items()}


def _model(
    base: Path, classes: Sequence[str], train: Classes, steps: Steps, options: Options
) -> NeurIPTForEEGClassification:
    encoder = encoder_of(base)
    config = encoder.config
    assert isinstance(config, NeurIPTConfig)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.label_priors = (np.bincount(train, minlength=len(classes)) / len(train)).tolist()
    config.prior_strength, config.preprocessing, config.head_size = options.prior_strength, steps.to_config(), 0
    model = NeurIPTForEEGClassification(config)
    model.neuript.load_state_dict(encoder.state_dict())
    return _on_device(model)


def _on_device(model: NeurIPTForEEGClassification) -> NeurIPTForEEGClassification:
    moved: Any = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    assert isinstance(moved, NeurIPTForEEGClassification)
    return moved


def _band_power(parts: Parts, data: Mapping[str, _Data]) -> Metrics | None:
    try:
        found = discriminant(parts["train"], data["train"].classes, parts["test"])
    except InputError:
        return None
    return metrics(found, data["test"].classes)


def _copied(model: NeurIPTForEEGClassification) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
