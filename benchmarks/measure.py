"""What a fine-tune still answers after compression. A delta is always judged as the file on disk, read as a server
reads it and patched into the resident base. Knows nothing of methods and of where results go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from patchbay.architecture import Kind
from patchbay.backbone import Backbone
from patchbay.delta import Delta, DeltaFile
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, Recipe, Term, build_plan
from patchbay.models.heads import delta_head

Z = 1.959964  # of a 95 % interval
Rows = npt.NDArray[np.float64]
Logits = Callable[[PreTrainedModel], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over test rows with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """`score` is accuracy in [0, 1], or perplexity; `agreement` the share of rows (tokens) with the fine-tune's arg
    max; `kl` is KL(fine-tune || compressed) in nats a row (token); `retained` 100 * score / full score, or its inverse
    for perplexity."""

    score: Estimate
    retained: float
    agreement: Estimate
    kl: Estimate


def compare(outputs: torch.Tensor, full: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Logits [rows, classes] or [rows, positions, vocabulary] against the fine-tune's, on the same test rows."""
    score, reference = score_of(outputs, targets), score_of(full, targets)
    ratio = score.value / reference.value if reference.value else math.nan
    retained = 100 * (1 / ratio if is_language(outputs) else ratio)
    same = (outputs.argmax(-1) == full.argmax(-1)).double()
    divergence = torch.stack([_divergence(*pair) for pair in zip(full, outputs, strict=True)])
    return Scores(score, retained, _estimate(_by_row(same)), _estimate(_by_row(divergence)))


def score_of(outputs: torch.Tensor, targets: torch.Tensor) -> Estimate:
    """Accuracy, or for a language model perplexity: exp of the mean negative log-likelihood of a token."""
    if not is_language(outputs):
        return _estimate((outputs.argmax(-1) == targets).double().numpy())
    losses = [torch.nn.functional.cross_entropy(*row) for row in zip(outputs, targets, strict=True)]
    mean = _estimate(torch.stack(losses).double().numpy())
    return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))


def is_language(outputs: torch.Tensor) -> bool:
    return outputs.dim() == 3


def _divergence(full: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """sum p_full (log p_full - log p), over the last dimension, in float64."""
    expected, found = full.double().log_softmax(-1), outputs.double().log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1)


def _by_row(values: torch.Tensor) -> Rows:
    """Tokens of one window depend on each other: the window's mean counts as one observation."""
    rows: Rows = values.reshape(len(values), -1).mean(-1).numpy()
    return rows


def _estimate(rows: Rows) -> Estimate:
    """Wilson's interval where every row is right or wrong, else the normal one over rows."""
    mean, count = float(rows.mean()), len(rows)
    if set(np.unique(rows)) <= {0.0, 1.0}:
        centre = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
        width = Z / (1 + Z**2 / count) * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2))
    else:
        centre, width = mean, Z * float(rows.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, centre - width, centre + width)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Entries of a base's tensors, over all and over its matrices without embeddings."""

    parameters: int
    matrices: int

    @classmethod
    def of(cls, backbone: Backbone) -> Sizes:
        matrices = [spec for spec in backbone.specs.values() if spec.is_matrix and spec.kind is not Kind.EMBEDDING]
        return cls(backbone.num_parameters, sum(spec.numel for spec in matrices))


class Bench:
    """One resident base, on which delta files are tried one after the other."""

    def __init__(self, base: Path) -> None:
        self.backbone = Backbone.load(base, dtype="fp32", device="cpu")
        self.sizes = Sizes.of(self.backbone)
        self._patcher = Patcher(self.backbone)

    def outputs(self, file: Path, logits: Logits, *, patched: bool = True) -> torch.Tensor:
        """Logits under the delta; without `patched` under its head on the unchanged base."""
        opened, backbone = DeltaFile.open(file), self.backbone
        delta = opened.load(backbone.specs, backbone.fingerprint, read_base=backbone.stored)
        model = delta_head(self.backbone, delta).model if delta.added else self.backbone.model
        if not patched:
            return logits(model)
        with self._patcher.patched(build_plan(_alone(delta), [delta]), [delta]):
            return logits(model)


def full_outputs(finetuned: Path, logits: Logits) -> torch.Tensor:
    """The same logits of the fine-tuned folder itself."""
    return logits(Backbone.load(finetuned, dtype="fp32", device="cpu").model)


def head_bytes(file: Path) -> int:
    """On disk, of a head that the fine-tune brought: new parameters, and no part of a difference."""
    return DeltaFile.open(file).itemised()["added"]


def statistics_bytes(file: Path) -> int:
    """On disk, of the statistics for merging: of the full task vector, so the same whatever the method and the size."""
    return DeltaFile.open(file).itemised()["statistics"]


def _alone(delta: Delta) -> CanonicalRecipe:
    recipe = Recipe(terms=(Term(delta="delta"),))
    return recipe.canonical({"delta": delta.manifest.payload_sha256}, symmetric=True, defaults={})
