"""The work of the merging benchmark, as jobs: write a delta, score a fine-tune alone, score one merge.

A result is a plain line for the results file. Knows nothing of which jobs are still to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.families.base import Case, Family, OnProgress, short_hash
from benchmarks.jobs import bench_of
from benchmarks.measure import Estimate, Z, head_bytes, score_of
from benchmarks.merges import Built, Member, built, divergence, outputs
from benchmarks.methods import Effort
from benchmarks.results import Line
from patchbay.checkpoint import Checkpoint
from patchbay.compress.compress import compress
from patchbay.compress.options import Options
from patchbay.errors import InvalidRecipe
from patchbay.merge import find_method
from patchbay.merge.scale import search_scale

ALL, LEFT_OUT, PAIRS = PARTS = ("all", "out of domain", "pairs")  # the tables that a merge may belong to


@dataclass(frozen=True, slots=True)
class Source:
    """What is merged: whole task vectors, or deltas of `bits` a parameter by the default method."""

    bits: float | None = None
    data_free: bool = False

    @property
    def name(self) -> str:
        if self.bits is None:
            return "full"
        return f"{self.bits:g} bits" + (", data-free" if self.data_free else "")


FULL_SOURCE = Source()


@dataclass(frozen=True, slots=True)
class Deliver:
    """One fine-tune's delta, in a file whose name says what it was made from. Gives the file."""

    case: Case
    source: Source
    folder: Path
    effort: Effort

    @property
    def title(self) -> str:
        return f"{self.case.family} {self.case.task} {self.source.name}"

    @property
    def file(self) -> Path:
        made_from: tuple[object, ...] = (Checkpoint.open(self.case.base).fingerprint, self.case.fingerprint)
        if self._needs_inputs:
            made_from = (*made_from, self.effort, self.case.calibration.read_bytes())
        key = short_hash(*made_from, self._options(None))
        source = self.source.name.replace(", ", "-").replace(" ", "-")
        return self.folder / f"{self.case.family}-{self.case.task}-{source}-{key}.safetensors"

    def run(self, on_progress: OnProgress) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(f".{os.getpid()}.unfinished")
        options = self.effort.limit(self._options(self._target()))
        inputs = self.effort.read(self.case.calibration) if self._needs_inputs else None
        compress(self.case.base, self.case.finetuned, unfinished, options, calibration=inputs)
        unfinished.replace(self.file)
        return self.file

    @property
    def _needs_inputs(self) -> bool:
        return self.source.bits is not None and not self.source.data_free

    def _options(self, target: int | None) -> Options:
        return Options("lossless") if self.source.bits is None else Options(target_size=target)

    def _target(self) -> int | None:
        """As in the compression benchmark: the head's bytes are counted apart, which are the same in every file."""
        if self.source.bits is None:
            return None
        full = Deliver(self.case, FULL_SOURCE, self.folder, self.effort).file
        return int(self.source.bits * bench_of(self.case.base).sizes.parameters / 8) + head_bytes(full)


@dataclass(frozen=True, slots=True)
class Alone:
    """What merges are compared with: the fine-tune itself, and its head on the unchanged base."""

    family: Family
    case: Case
    full: Path

    @property
    def title(self) -> str:
        return f"{self.case.family} {self.case.task} alone"

    def question(self) -> Line:
        rows = len(self.family.targets(self.case.task))
        asked = {"kind": "reference", "family": self.case.family, "tasks": self.case.task, "rows": rows}
        return asked | {"finetunes": self.case.fingerprint}

    def run(self, on_progress: OnProgress) -> Line:
        bench, logits = bench_of(self.case.base), partial(self.family.logits, self.case.task)
        targets = self.family.targets(self.case.task)
        own = score_of(bench.outputs(self.full, logits), targets)
        base = score_of(bench.outputs(self.full, logits, patched=False), targets)
        return self.question() | {"finetune": asdict(own), "base": asdict(base)}


@dataclass(frozen=True, slots=True)
class Merge:
    """One way to merge `merged`, asked for the tasks of `scored`; `members` are all of the run. `tuned`: the scale has
    the least divergence from the merged fine-tunes on `inputs` of each one's calibration inputs. `part`: one of PARTS.
    """

    family: Family
    part: str
    source: Source
    method: str
    tuned: bool
    members: tuple[Member, ...]
    merged: tuple[Member, ...]
    scored: tuple[Member, ...]
    rows: int
    inputs: int

    @property
    def title(self) -> str:
        return f"{self.part} {self.source.name} {self.method}{' tuned' if self.tuned else ''}"

    def question(self) -> Line:
        return given(self.family, self.members, self.merged, self.scored) | {
            "part": self.part,
            "source": self.source.name,
            "method": self.method,
            "params": repr(sorted(find_method(self.method).defaults.items())),
            "tuned": self.tuned,
            "rows": self.rows,
            "inputs": self.inputs if self.tuned else None,
        }

    def run(self, on_progress: OnProgress) -> Line:
        try:
            merge = built(self.merged, self.method)
        except InvalidRecipe as reason:
            return self.question() | {"refused": reason.message}
        tried = search_scale(partial(divergence, merge, inputs=self.inputs)) if self.tuned else {}
        scale = min(tried, key=lambda each: tried[each], default=1.0)
        return (
            self.question()
            | measured(self.family, merge, scale, self.scored)
            | {
                "divergence": tried.get(scale),
                "tried": [{"scale": each, "divergence": found} for each, found in sorted(tried.items())],
            }
        )


def given(family: Family, members: tuple[Member, ...], merged: tuple[Member, ...], scored: tuple[Member, ...]) -> Line:
    """What every question about a merge says of its inputs."""
    made_from = [part for member in members for part in (member.case.fingerprint, member.file.name)]
    return {
        "kind": "merge",
        "family": family.name,
        "tasks": _names(members),
        "merged": _names(merged),
        "scored": _names(scored),
        "finetunes": short_hash(*(member.case.fingerprint for member in members)),
        "deltas": short_hash(*made_from),
    }


def measured(family: Family, merge: Built, scale: float, members: tuple[Member, ...]) -> Line:
    """What `members` score under the merge, what of that each retains, and what the merge costs."""
    scores = _scores(family, outputs(family, merge, scale, members))
    return (
        _of(merge)
        | _averages(family, scores, members)
        | {"scale": scale, "scores": {task: asdict(score) for task, score in scores.items()}}
    )


def _averages(family: Family, scores: Mapping[str, Estimate], members: tuple[Member, ...]) -> Line:
    """`half_width`: of a 95 % interval of the average over other test rows of the same tasks."""
    kept = {member.task: 100 * scores[member.task].value / member.accuracy for member in members}
    variances = [_variance(scores[task].value, len(family.targets(task))) for task in scores]
    return {
        "retained": kept,
        "average": sum(score.value for score in scores.values()) / len(scores),
        "half_width": Z * math.sqrt(sum(variances)) / len(scores),
        "average_retained": sum(kept.values()) / len(kept),
    }


def _of(merge: Built) -> Line:
    return {"path": merge.path, "bytes": merge.num_bytes, "build_seconds": merge.seconds, "builds": merge.builds}


def _scores(family: Family, logits: Mapping[str, torch.Tensor]) -> dict[str, Estimate]:
    return {task: score_of(found, family.targets(task)) for task, found in sorted(logits.items())}


def _variance(accuracy: float, rows: int) -> float:
    return accuracy * (1 - accuracy) / rows


def _names(members: tuple[Member, ...]) -> str:
    return "+".join(member.task for member in members)
