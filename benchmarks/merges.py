"""Merges on the resident base: built, timed, patched in and asked, with each task's own head.

What is large is kept from one merge to the next: decoded deltas, the last merge that was built, calibration inputs with
the fine-tunes' outputs. Knows nothing of results files.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from benchmarks.families.base import Case, Family
from benchmarks.jobs import bench_of
from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.delta import Delta, DeltaFile
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, Merged, MergePlan, build, find_method
from patchbay.merge.recipe import MAX_TERMS
from patchbay.merge.scale import scaled
from patchbay.models.heads import delta_head

BUILDS = 3
LONG = 10.0  # seconds: a merge is not built again once its builds took as long together
PLACE = "task"  # parameter of methods that make one delta a task: the task's place in the recipe


@dataclass(frozen=True, slots=True)
class Member:
    """One fine-tune: `file` is the delta that is merged, `full` the lossless one, and `accuracy` that one's."""

    case: Case
    file: Path
    full: Path
    accuracy: float

    @property
    def task(self) -> str:
        return self.case.task


@dataclass(frozen=True)
class Built:
    """One merge for all tasks, or one a task. `seconds`: of all of them, the median of `builds`."""

    merges: tuple[Merged, ...]
    members: tuple[Member, ...]
    path: str
    seconds: float
    builds: int

    @property
    def num_bytes(self) -> int:
        """In memory, of what a merge is: a delta of its own, or the plan for deltas as they are."""
        return sum(merged.delta.num_bytes if merged.delta else merged.plan.num_bytes for merged in self.merges)

    def answers(self, scored: Sequence[Member]) -> Iterator[tuple[Merged, Sequence[Member]]]:
        """Each merge with those of `scored` that it answers for."""
        if len(self.merges) == 1:
            yield self.merges[0], scored
        else:
            for merged, member in zip(self.merges, self.members, strict=True):
                yield merged, [other for other in scored if other == member]


def is_for_one_task(method: str) -> bool:
    """Whether a merge by it is good for one of its terms only."""
    return PLACE in find_method(method).defaults


@lru_cache(maxsize=1)
def built(members: tuple[Member, ...], method: str) -> Built:
    """The merge of these fine-tunes at the method's defaults, scale 1 and weights 1. Raises as `build` does."""
    ordered = _in_order(members, method)
    deltas = [delta_of(member.case.base, member.file) for member in ordered]
    backbone = bench_of(members[0].case.base).backbone
    recipes = _recipes(method, deltas)
    seconds: list[float] = []
    merges: tuple[Merged, ...] = ()
    while len(seconds) < BUILDS and sum(seconds) < LONG:
        merges = ()  # the last ones go before the next are made
        started = time.perf_counter()
        merges = tuple(build(recipe, deltas, backbone) for recipe in recipes)
        seconds.append(time.perf_counter() - started)
    return Built(merges, ordered, find_method(method).path, statistics.median(seconds), len(seconds))


def dense(members: tuple[Member, ...], differences: Sequence[Mapping[str, torch.Tensor]], path: str) -> Built:
    """A merge that was made elsewhere: fp32 differences by the base's names, for all tasks or for each of `members`."""
    first = delta_of(members[0].case.base, members[0].file)
    return Built(tuple(_dense(first, each) for each in differences), members, path, 0.0, 1)


def _dense(like: Delta, vectors: Mapping[str, torch.Tensor]) -> Merged:
    """`like` says which base the differences are for."""
    delta = replace(
        like, matrices={}, vectors=vectors, added={}, copied={}, exceptions={}, neurons={}, appended={}, factors={}
    )
    return Merged(MergePlan("elsewhere", ("elsewhere",), {}, vectors, {}, exact=False), delta)


def _in_order(members: tuple[Member, ...], method: str) -> tuple[Member, ...]:
    """As in a canonical recipe: sorted by content where the order does not matter."""
    if not find_method(method).symmetric:
        return members
    return tuple(sorted(members, key=lambda member: delta_of(member.case.base, member.file).manifest.payload_sha256))


def _recipes(method: str, deltas: Sequence[Delta]) -> list[CanonicalRecipe]:
    terms = tuple((delta.manifest.payload_sha256, 1.0) for delta in deltas)
    places = [{PLACE: place} for place in range(len(deltas))] if is_for_one_task(method) else [{}]
    params = [tuple(sorted({**find_method(method).defaults, **place}.items())) for place in places]
    return [CanonicalRecipe(method, terms, 1.0, each, None) for each in params]


def outputs(family: Family, merge: Built, scale: float, scored: Sequence[Member]) -> dict[str, torch.Tensor]:
    """By task: logits on its test rows, under its own head."""
    found: dict[str, torch.Tensor] = {}
    for merged, members in merge.answers(scored):
        with _patched(merge, merged, scale) as backbone:
            for member in members:
                head = delta_head(backbone, delta_of(member.case.base, member.file))
                found[member.task] = family.logits(member.task, head.model)
    return found


def divergence(merge: Built, scale: float, inputs: int) -> float:
    """KL(fine-tune || merge) on `inputs` calibration inputs of each merged task, nats; the mean over tasks."""
    found: list[float] = []
    for merged, members in merge.answers(merge.members):
        judges = [_judge(member.case, member.full, inputs) for member in members]  # first: they patch, too
        with _patched(merge, merged, scale):
            found += [judge.batch_divergence(range(judge.num_batches)) for judge in judges]
    return sum(found) / len(found)


@contextmanager
def _patched(merge: Built, merged: Merged, scale: float) -> Iterator[Backbone]:
    base = merge.members[0].case.base
    terms = [delta_of(base, member.file) for member in merge.members]
    backbone, now = bench_of(base).backbone, scaled(merged, scale)
    with Patcher(backbone).patched(now.plan, now.deltas(terms)):
        yield backbone


@lru_cache(maxsize=2 * MAX_TERMS)
def delta_of(base: Path, file: Path) -> Delta:
    """Decoded: a small encoder's whole difference is 90 MB, so those of two sources fit."""
    backbone = bench_of(base).backbone
    return DeltaFile.open(file).load(backbone.specs, backbone.fingerprint, read_base=backbone.stored)


@lru_cache(maxsize=MAX_TERMS)
def _judge(case: Case, full: Path, inputs: int) -> Judge:
    given = Calibration.read(case.calibration)
    return Judge(bench_of(case.base).backbone, delta_of(case.base, full), Calibration(given.inputs[:inputs]))
