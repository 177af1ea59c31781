"""Calibration: inputs that compression may look at, and how a candidate delta is scored on them.

Without labels the score is the mean KL divergence from the full fine-tune's outputs to the candidate's: whoever
compresses has the fine-tune at hand. Every forward runs on the exact patch path, as serving will. Never give it the
inputs that results are reported on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from patchbay.architecture import CLASSIFIERS, Task
from patchbay.backbone import Backbone
from patchbay.compress.options import ScoreName
from patchbay.delta import Delta
from patchbay.errors import InputError, UnsupportedTask
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, build_plan
from patchbay.models.embedding import unit_vectors
from patchbay.models.generation import with_answers
from patchbay.models.heads import HeadModel, base_head, delta_head
from patchbay.models.inputs import ArrayInput, Batch, Input, Inputs
from patchbay.models.signals import SignalInput, signal_inputs

MAX_FILE = 1 << 30
MAX_INPUTS = 1 << 17
RECORDINGS = (".edf", ".bdf", ".gdf", ".cnt", ".set", ".vhdr", ".fif", ".fif.gz")
BATCH = 32
BATCH_CHARACTERS = 1 << 12  # of padded text: what a backward pass keeps grows with it
LM_INPUTS = ("input_ids", "attention_mask")
CHOSEN = "chosen"  # of a batch: which tokens' outputs are compared
ANSWER_TOKENS = 32  # of a sequence-to-sequence model
MAX_OUTPUTS = 1 << 26  # numbers kept of the full fine-tune's outputs: of a language model, evenly chosen tokens


@dataclass(frozen=True, slots=True)
class Calibration:
    """`inputs` as the model's users send them, and a class for each where there are labels."""

    inputs: tuple[Input, ...]
    labels: tuple[str, ...] | None = None

    @classmethod
    def of(cls, inputs: Calibration | Path) -> Calibration:
        """Inputs as they are, or read from a file. Raises as `read` does."""
        return inputs if isinstance(inputs, Calibration) else cls.read(inputs)

    @classmethod
    def read(cls, file: Path, labels: Path | None = None) -> Calibration:
        """Text lines, or a batch in `.npy` or `.safetensors`: arrays, one tensor, or windows of recordings.
        `labels`: one class a line.

        Raises InputError for a file that is empty, too large, or of another kind, and for labels that do not match.
        """
        _check_file(file, "calibration")
        if file.name.lower().endswith(RECORDINGS):
            raise InputError(
                f"{file} is a recording, and windows of recordings are wanted: `patchbay neuript finetune` leaves some "
                "in its folder, as calibration.safetensors",
                param="calibration",
            )
        inputs = _arrays(file) if file.suffix in (".npy", ".safetensors") else _lines(file, "calibration")
        if not inputs:
            raise InputError(f"{file} has no inputs", param="calibration")
        if len(inputs) > MAX_INPUTS:
            raise InputError(f"{file} has {len(inputs)} inputs: some hundred do", param="calibration")
        if labels:
            _check_file(labels, "labels")
        classes = [str(line) for line in _lines(labels, "labels")] if labels else None
        if classes is not None and len(classes) != len(inputs):
            raise InputError(f"{len(classes)} labels for {len(inputs)} calibration inputs", param="labels")
        return cls(tuple(inputs), tuple(classes) if classes else None)


class Judge:
    """Scores deltas of one fine-tune on one calibration set.

    `full` is the whole fine-tune as a delta whose differences are dense. Raises InputError for inputs that do not suit
    the model, UnsupportedTask for labels of what is no classifier. A sequence-to-sequence model is judged on the tokens
    that the full fine-tune answers greedily.
    """

    def __init__(self, backbone: Backbone, full: Delta, calibration: Calibration, score: ScoreName = "kl") -> None:
        self.backbone = backbone
        self.full = full
        self.score_name = score
        self._patcher = Patcher(backbone)
        self._head = _head(backbone, full)
        self._batches = list(_batches(backbone, full, calibration))
        self._is_lm = self._head is None and backbone.task is not Task.EMBEDDING
        if self._is_lm:  # a tokenizer may give more, which serving does not pass on
            self._batches = [{name: batch[name] for name in LM_INPUTS} for batch in self._batches]
        self._labels = _label_ids(self._head, calibration) if score != "kl" else None
        with self.patched(full):
            if backbone.task is Task.SEQ2SEQ_LM:
                tokenizer = Inputs(backbone).tokenizer_with(full.manifest.tokens)
                self._batches = [with_answers(backbone, tokenizer, batch, ANSWER_TOKENS) for batch in self._batches]
            if self._is_lm:
                self._batches = _thinned(self._batches, MAX_OUTPUTS // self.backbone.model.config.vocab_size)
            self._reference = self._outputs()

    def divergence(self, delta: Delta) -> float:
        """Mean KL(full || candidate) over inputs or tokens; |e - e'|^2 for embeddings and regressions."""
        with self.patched(delta):
            return self.batch_divergence(range(self.num_batches))

    @torch.no_grad()
    def batch_divergence(self, indices: Sequence[int]) -> float:
        """The divergence of the model as it is now, over some of the batches."""
        sums = [float(self.batch_loss(index)) * len(self._reference[index]) for index in indices]
        return sum(sums) / sum(len(self._reference[index]) for index in indices)

    def batch_loss(self, index: int) -> torch.Tensor:
        """The mean divergence of the model as it is now on one batch, differentiable."""
        reference, outputs = self._reference[index], self._forward(self._batches[index])
        if self.compares_values:
            return (outputs - reference).square().sum(-1).mean()
        return (reference.exp() * (reference - outputs)).sum(-1).mean()

    def score(self, delta: Delta) -> float:
        """Higher is better: -KL, or accuracy, balanced accuracy or mean log-likelihood against the labels."""
        if self._labels is None:
            return 0.0 - self.divergence(delta)  # 0 where nothing diverges, not -0
        with self.patched(delta):
            outputs = torch.cat(self._outputs())
        if self.score_name == "log_likelihood":
            return float(outputs[torch.arange(len(outputs)), self._labels].mean())
        hits = (outputs.argmax(-1) == self._labels).double()
        if self.score_name == "accuracy":
            return float(hits.mean())
        classes = [hits[self._labels == label].mean() for label in torch.unique(self._labels)]
        return float(torch.stack(classes).mean())

    @contextmanager
    def patched(self, delta: Delta) -> Iterator[None]:
        recipe = CanonicalRecipe("task_arithmetic", (("candidate", 1.0),), 1.0, (), None)
        with self._patcher.patched(build_plan(recipe, [delta]), [delta]):
            yield

    @torch.no_grad()
    def run(self, every: int = 1) -> None:
        """A forward of one batch in `every`, for whoever listens to the model's layers meanwhile."""
        for batch in self._batches[::every]:
            self._forward(batch)

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    @torch.no_grad()
    def _outputs(self) -> list[torch.Tensor]:
        return [self._forward(batch) for batch in self._batches]

    @property
    def compares_values(self) -> bool:
        """Where outputs are no distribution: unit vectors, and the numbers of a regression."""
        return self.backbone.task is Task.EMBEDDING if self._head is None else _is_regression(self._head)

    def _forward(self, batch: Batch) -> torch.Tensor:
        """fp32 log-probabilities [inputs or tokens, classes], or unit vectors, or numbers."""
        if self._head is not None:
            logits: torch.Tensor = self._head.model(**batch).logits.float()
            if _is_regression(self._head):
                return logits
            if self._head.model.config.problem_type == "multi_label_classification":
                return torch.nn.functional.logsigmoid(torch.stack([logits, -logits], -1)).flatten(1)
            return torch.log_softmax(logits, dim=-1)
        if self._is_lm:
            given = {name: tensor for name, tensor in batch.items() if name != CHOSEN}
            logits = self.backbone.model(**given).logits
            return torch.log_softmax(logits.flatten(0, 1)[batch[CHOSEN]].float(), dim=-1)
        return unit_vectors(self.backbone, batch)


def _head(backbone: Backbone, full: Delta) -> HeadModel | None:
    if full.added:
        return delta_head(backbone, full)
    return base_head(backbone) if backbone.task in CLASSIFIERS else None


def _is_regression(head: HeadModel) -> bool:
    """A softmax of one output is 1 whatever it is."""
    return len(head.labels) == 1 or head.model.config.problem_type == "regression"


def _batches(backbone: Backbone, full: Delta, calibration: Calibration) -> Iterator[Batch]:
    """In batches of inputs of similar length, because padding is wasted work."""
    reader, tokens = Inputs(backbone), full.manifest.tokens
    rows = max(map(len, full.appended.values()), default=0)
    inputs = [calibration.inputs[index] for index in _order(calibration)]
    start = 0
    for end, longest in enumerate(map(_size, inputs[1:]), 1):
        if end - start == BATCH or (end - start + 1) * longest > BATCH_CHARACTERS:
            yield reader.batch(inputs[start:end], tokens, rows)
            start = end
    yield reader.batch(inputs[start:], tokens, rows)


def _thinned(batches: Sequence[Batch], limit: int) -> list[Batch]:
    """With the places of at most `limit` tokens, evenly spread over all batches; batches without any are left out."""
    masks = [batch.get("decoder_attention_mask", batch["attention_mask"]) for batch in batches]
    step = -(-sum(int(mask.sum()) for mask in masks) // max(1, limit))
    thinned, seen = [], 0
    for batch, mask in zip(batches, masks, strict=True):
        places = torch.nonzero(mask.flatten()).flatten()
        chosen = places[(step // 2 - seen) % step :: step]
        seen += len(places)
        if len(chosen):
            thinned.append({**batch, CHOSEN: chosen})
    return thinned


def _order(calibration: Calibration) -> list[int]:
    return sorted(range(len(calibration.inputs)), key=lambda index: _size(calibration.inputs[index]))


def _size(item: Input) -> int:
    if isinstance(item, SignalInput):
        return item.signal.numel()
    return len(item) if isinstance(item, str) else 0


def _label_ids(head: HeadModel | None, calibration: Calibration) -> torch.Tensor:
    if head is None or _is_regression(head) or head.model.config.problem_type == "multi_label_classification":
        raise UnsupportedTask(
            "only a classifier of one label an input can be scored against labels: leave the labels out", param="score"
        )
    if calibration.labels is None:
        raise InputError("this score needs labels for the calibration inputs: give --labels", param="labels")
    index: Mapping[str, int] = {label: number for number, label in enumerate(head.labels)}
    unknown = [label for label in calibration.labels if label not in index]
    if unknown:
        raise InputError(f"the fine-tune has no class {unknown[0]!r}; it has {', '.join(head.labels)}", param="labels")
    return torch.tensor([index[calibration.labels[place]] for place in _order(calibration)])


def _check_file(file: Path, param: str) -> None:
    if file.is_dir():
        within = file / "calibration.safetensors"
        hint = f": give {within}" if within.is_file() else f": give a {param} file"
        raise InputError(f"{file} is a folder{hint}", param=param)
    if not file.is_file():
        raise InputError(f"there is no {param} file {file}", param=param)
    if file.stat().st_size > MAX_FILE:
        raise InputError(f"{file} has more than {MAX_FILE} bytes: some hundred inputs do", param=param)


def _lines(file: Path, param: str) -> list[Input]:
    try:
        # No splitlines: it also cuts at form feeds and other characters that texts contain.
        return [line for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}", param=param) from error


def _arrays(file: Path) -> list[Input]:
    try:
        # Mapped before it is copied: the header of a small file may claim any size.
        named = {"": _npy(file)} if file.suffix == ".npy" else load_file(file)
    except Exception as error:  # whatever a hostile header provokes in numpy and safetensors
        raise InputError(f"{file} is no batch of arrays: {error}", param="calibration") from error
    if "signal" in named and len(named) > 1:
        return _signals(file, named)
    if len(named) != 1:
        raise InputError(f"{file} holds {len(named)} tensors where one batch is wanted", param="calibration")
    (batch,) = named.values()
    if batch.is_complex():
        raise InputError(f"{file} holds complex numbers, which no model takes", param="calibration")
    if batch.dim() < 2:
        raise InputError(f"{file} has shape {list(batch.shape)}: the first axis counts the inputs", param="calibration")
    if len(batch) > MAX_INPUTS:
        raise InputError(f"{file} has {len(batch)} inputs: some hundred do", param="calibration")
    return [ArrayInput(row) for row in batch.float().numpy()]


def _signals(file: Path, batch: Mapping[str, torch.Tensor]) -> list[Input]:
    """Windows of recordings, as fine-tuning writes them."""
    try:
        return list(signal_inputs(batch))
    except InputError as error:
        raise InputError(f"{file}: {error.message}", param="calibration") from error


def _npy(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(np.lib.format.open_memmap(file, mode="r")))
