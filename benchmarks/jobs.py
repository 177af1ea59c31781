"""The work of the compression benchmark, as jobs: get a fine-tune, take its full outputs, try one compressed size.

A result is a plain line for the results file. Knows nothing of which jobs are still to do.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.families.base import Case, Family, OnProgress
from benchmarks.measure import (
    Bench,
    Estimate,
    Scores,
    compare,
    full_outputs,
    head_bytes,
    is_language,
    score_of,
    statistics_bytes,
)
from benchmarks.methods import METHODS, CannotReach, Effort, compress_to
from benchmarks.results import Line
from patchbay.compress.compress import compress
from patchbay.compress.options import Options

# A fine-tuned language model counts from this fraction of the base's perplexity on.
CLEARLY_LOWER = 0.97


@dataclass(frozen=True, slots=True)
class Train:
    """Gives the case, fine-tuned now unless it was before."""

    family: Family
    task: str

    @property
    def title(self) -> str:
        return f"{self.family.name} {self.task}"

    def run(self, on_progress: OnProgress) -> Case:
        return self.family.case(self.task, on_progress)


@dataclass(frozen=True, slots=True)
class TrainBase:
    """Gives the base, pre-trained now unless it was before."""

    family: Family

    @property
    def title(self) -> str:
        return f"{self.family.name} base"

    def run(self, on_progress: OnProgress) -> Path:
        return self.family.base(on_progress)


@dataclass(frozen=True, slots=True)
class Refer:
    """Full outputs, kept in `outputs`, and what the fine-tune is compared with: the base and, for text, the probe."""

    family: Family
    case: Case
    outputs: Path

    @property
    def title(self) -> str:
        return f"{self.case.family} {self.case.task}"

    def question(self) -> Line:
        return question_of(self) | {"kind": "reference"}

    def run(self, on_progress: OnProgress) -> Line:
        logits = partial(self.family.logits, self.case.task)
        targets = self.family.targets(self.case.task)
        full = full_outputs(self.case.finetuned, logits)
        _save(self.outputs, full)
        bench = bench_of(self.case.base)
        with tempfile.TemporaryDirectory() as folder:
            empty = Path(folder) / "empty.safetensors"
            compress(self.case.base, self.case.finetuned, empty, Options("magnitude", density=0.0))
            head, statistics = head_bytes(empty), statistics_bytes(empty)
            untouched = bench.outputs(empty, logits, patched=False)
        score, base, probe = score_of(full, targets), compare(untouched, full, targets), self.family.probe(self.case)
        return self.question() | {
            **_spread("full", score),
            **_spread("base", base.score),
            "base_retained": base.retained,
            "base_kl": base.kl.value,
            "probe": probe,
            "counts": _counts(score, base.score, probe, is_language(full)),
            "head_bytes": head,
            "statistics_bits": 8 * statistics / bench.sizes.parameters,
            **asdict(bench.sizes),
        }


@dataclass(frozen=True, slots=True)
class Try:
    """One method at `bits` a parameter of the base, with one seed."""

    family: Family
    case: Case
    outputs: Path
    method: str
    bits: float
    seed: int
    head_bytes: int
    effort: Effort

    @property
    def title(self) -> str:
        return f"{self.case.family} {self.case.task} {self.method} {self.bits:g}"

    def question(self) -> Line:
        asked = self.effort.limit(METHODS[self.method].options(1, self.seed))
        cell = {"kind": "cell", "method": self.method, "bits": self.bits, "seed": self.seed, "options": repr(asked)}
        return question_of(self) | cell

    def run(self, on_progress: OnProgress) -> Line:
        bench = bench_of(self.case.base)
        target = int(self.bits * bench.sizes.parameters / 8) + self.head_bytes
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "delta.safetensors"
            try:
                report = compress_to(target, METHODS[self.method], self.case, file, self.seed, self.effort)
            except CannotReach as reason:
                return self.question() | {"unreachable": str(reason), "needed": self._bits(bench, reason.num_bytes)}
            outputs = bench.outputs(file, partial(self.family.logits, self.case.task))
        scores = compare(outputs, full_of(self.outputs), self.family.targets(self.case.task))
        return self.question() | {
            "bytes": report.num_bytes,
            "head_bytes": self.head_bytes,
            "bits_per_parameter": self._bits(bench, report.num_bytes),
            "bits_per_matrix_entry": 8 * (report.num_bytes - self.head_bytes) / bench.sizes.matrices,
            "density": report.density,
            "relative_error": report.relative_error,
            "compress_seconds": report.seconds,
            **flat(scores),
        }

    def _bits(self, bench: Bench, num_bytes: int | None) -> float | None:
        return None if num_bytes is None else 8 * (num_bytes - self.head_bytes) / bench.sizes.parameters


def question_of(job: Refer | Try) -> Line:
    """What every question about a fine-tune says of it."""
    case, rows = job.case, len(job.family.targets(job.case.task))
    return {"family": case.family, "task": case.task, "finetune": case.fingerprint, "rows": rows}


def _counts(full: Estimate, base: Estimate, probe: float | None, language: bool) -> bool:
    if language:
        return full.value < CLEARLY_LOWER * base.value
    return full.value > (base.value if probe is None else probe)


def flat(scores: Scores) -> Mapping[str, Any]:
    """As fields of a line, intervals included."""
    estimates = {"score": scores.score, "agreement": scores.agreement, "kl": scores.kl}
    spread = {name: number for key, value in estimates.items() for name, number in _spread(key, value).items()}
    return spread | {"retained": scores.retained}


def _spread(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _save(file: Path, outputs: torch.Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.npy")
    np.save(unfinished, outputs.numpy())
    unfinished.replace(file)


@lru_cache(maxsize=2)
def full_of(file: Path) -> torch.Tensor:
    """The fine-tune's own outputs."""
    return torch.from_numpy(np.load(file, allow_pickle=False))


@lru_cache(maxsize=2)
def bench_of(base: Path) -> Bench:
    """The resident base of this process."""
    return Bench(base)
