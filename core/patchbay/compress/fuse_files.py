"""NPS fusion of delta files: several pruned task vectors of one base -> one ordinary delta file.

The lambdas are given, or searched on each task's own inputs without labels. Knows nothing of servers and stores.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import patchbay
from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.fusion import Fused, fuse, search_lambdas
from patchbay.compress.parts import Progress
from patchbay.compress.search import Evaluation, SearchResult
from patchbay.compress.statistics import Norms
from patchbay.compress.write import unpublished
from patchbay.delta import Delta, DeltaFile, Factors, SparseRows, read_delta, write_delta
from patchbay.delta.delta import multiplied_out
from patchbay.delta.encode import Streams
from patchbay.delta.manifest import DTYPES, Base, Compression, Manifest, Provenance
from patchbay.errors import InvalidRecipe, NonFiniteValue
from patchbay.execute.vocabulary import appended_rows
from patchbay.merge.plan import merge_copied
from patchbay.merge.recipe import MAX_WEIGHT

# A fused value is a sum of kept values of several sizes, which a grid of few levels would not hit.
VALUES = "bf16"
Deltas = Mapping[str, Delta]


@dataclass(frozen=True, slots=True)
class FusionReport:
    """`lambdas` by name of the delta; `score`: the best mean over the tasks of -KL, None without a search."""

    path: str
    num_bytes: int
    lambdas: dict[str, float]
    density: float
    evaluations: int
    score: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fuse_files(
    base: str | Path,
    files: Mapping[str, Path],
    out: Path,
    *,
    lambdas: Sequence[float] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    evaluations: int = 40,
    head: str | None = None,
    on_progress: Progress | None = None,
) -> FusionReport:
    """Writes sum_i lambda_i m_i tau_i / max(1, sum_i m_i) of the deltas in `files`, each under a name, to `out`.

    `calibrations`, one for every name, start a search from `lambdas`, by default all 1. The score of a task is
    -KL(its own delta's outputs || the fused model's). `head` names the delta whose head the fused one takes along.
    Raises DeltaError for files that are not of this base; InvalidRecipe for names, numbers and parts that do not go
    together; InputError for inputs that do not suit the model.
    """
    _check(files, lambdas, calibrations, head)
    chosen = tuple(lambdas or [1.0] * len(files))
    backbone = Backbone.load(base, device="cpu")
    deltas = {
        name: read_delta(file, backbone.specs, backbone.fingerprint, read_base=backbone.stored)
        for name, file in files.items()
    }
    identity = _identity(deltas, head)
    found = None
    if calibrations:
        found = _search(backbone, deltas, calibrations, chosen, evaluations, on_progress)
        chosen = found.best.point
    written = _write(out, backbone, files, deltas, chosen, head, identity)
    return FusionReport(
        path=str(out),
        num_bytes=written.num_bytes,
        lambdas=dict(zip(files, chosen, strict=True)),
        density=written.manifest.compression.density,
        evaluations=len(found.evaluations) if found else 0,
        score=found.best.score if found else None,
    )


def _check(
    files: Mapping[str, Path],
    lambdas: Sequence[float] | None,
    calibrations: Mapping[str, Calibration] | None,
    head: str | None,
) -> None:
    if not files:
        raise InvalidRecipe("fusion needs at least one delta", param="delta")
    if lambdas is not None and len(lambdas) != len(files):
        raise InvalidRecipe(f"{len(lambdas)} weights for {len(files)} deltas: give one for each", param="lambdas")
    for number in lambdas or ():
        if not abs(number) <= MAX_WEIGHT:
            raise InvalidRecipe(f"lambda {number:g} is not between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}", param="lambdas")
    if head is not None and head not in files:
        raise InvalidRecipe(f"head {head!r} is not among the deltas: {', '.join(files)}", param="head")
    if calibrations and calibrations.keys() != files.keys():
        name = sorted(calibrations.keys() ^ files.keys())[0]
        what = "has no calibration inputs" if name in files else "is not among the deltas"
        raise InvalidRecipe(f"{name!r} {what}: a search needs inputs of every task", param="calibration")


def _search(
    backbone: Backbone,
    deltas: Deltas,
    calibrations: Mapping[str, Calibration],
    start: Sequence[float],
    budget: int,
    on_progress: Progress | None,
) -> SearchResult:
    judges = [Judge(backbone, delta, calibrations[name]) for name, delta in deltas.items()]
    tasks = list(deltas.values())
    copied = merge_copied(tasks)

    def scores(fused: Fused) -> list[float]:
        return [judge.score(_candidate(judge.full, fused, copied)) for judge in judges]

    return search_lambdas(tasks, scores, budget=budget, start=start, on_evaluation=_reporter(on_progress, budget))


def _candidate(task: Delta, fused: Fused, copied: Mapping[str, torch.Tensor]) -> Delta:
    """The fused model as one task asks it: with the task's own head and vocabulary."""
    return replace(
        task,
        matrices=fused.matrices,
        vectors=fused.vectors,
        factors=fused.factors,
        copied=copied,
        exceptions={},
        neurons={},
    )


def _reporter(on_progress: Progress | None, budget: int) -> Callable[[Evaluation], None]:
    scores: list[float] = []

    def report(evaluation: Evaluation) -> None:
        scores.append(evaluation.score)
        if on_progress:
            on_progress(len(scores), budget, f"search evaluation {len(scores)}, best score {max(scores):.4g}")

    return report


def _identity(deltas: Deltas, head: str | None) -> Mapping[str, Any]:
    """Config, labels and names: of the delta that brings the head or the larger vocabulary, else what all have in
    common, else the base's. And the tokens, of which there may be one set.
    """
    appended_rows(list(deltas.values()))  # at most one has any
    owners = {name for name, delta in deltas.items() if delta.appended or name == head}
    tokens = [delta.manifest.tokens for delta in deltas.values() if delta.manifest.tokens]
    if len(owners) > 1 or any(other != tokens[0] for other in tokens):
        raise InvalidRecipe(
            "one file holds the head and the added tokens of one delta: leave one out, or choose another head",
            param="head",
        )
    kept = [deltas[name] for name in owners or deltas]
    fields = [_identity_of(delta.manifest) for delta in kept]
    orphaned = head is None and any(delta.added for delta in kept)
    common = {} if orphaned or any(other != fields[0] for other in fields) else fields[0]
    return {**common, "tokens": tokens[0] if tokens else ()}


def _identity_of(manifest: Manifest) -> Mapping[str, Any]:
    names = ("missing", "prefix", "config", "config_removed", "labels")
    return {name: getattr(manifest, name) for name in names}


def _write(
    out: Path,
    backbone: Backbone,
    files: Mapping[str, Path],
    deltas: Deltas,
    lambdas: Sequence[float],
    head: str | None,
    identity: Mapping[str, Any],
) -> DeltaFile:
    streams, norms, tasks = Streams(), Norms(), list(deltas.values())
    density = _add(streams, norms, fuse(tasks, lambdas), tasks, frozenset(identity.get("missing", ())))
    for name, tensor in merge_copied(tasks).items():
        streams.add_raw(name, tensor, copied=True)
    if head is not None:
        for name, tensor in deltas[head].added.items():
            streams.add_raw(name, tensor, copied=False)
    for name, rows in appended_rows(tasks).items():
        streams.add_appended(name, rows.to(DTYPES[streams.entries[name].dtype]))
    entries, data = streams.finish()
    fields = {
        **identity,
        "base": Base(name=tasks[0].manifest.base.name, fingerprint=backbone.fingerprint),
        "compression": Compression(method="fusion", density=density, params=_params(files, lambdas)),
        "statistics": norms.statistics(),
        "provenance": _provenance(backbone, deltas),
        "tensors": entries,
    }
    with unpublished(out) as attempt:
        fused = write_delta(attempt, fields, data)
        try:
            fused.load(backbone.specs, backbone.fingerprint)
        except NonFiniteValue as error:
            raise InvalidRecipe(f"with these lambdas {error}: choose smaller ones", param="lambdas") from error
        attempt.replace(out)
    return DeltaFile.open(out)


def _add(streams: Streams, norms: Norms, fused: Fused, tasks: Sequence[Delta], missing: frozenset[str]) -> float:
    """The density: kept entries over all entries of matrices that are sparse or have factors."""
    kept = total = 0
    for name in sorted(fused.matrices.keys() | fused.factors.keys()):
        if name not in missing:
            rows, difference = fused.matrices.get(name), fused.difference(name)
            norms.add(difference, _add_matrix(streams, name, rows, fused.factors.get(name), _dtype(name, tasks)))
            kept, total = kept + (0 if rows is None else len(rows.positions)), total + difference.numel()
    for name, vector in fused.vectors.items():
        if name not in missing:
            norms.add(vector, streams.add_whole(name, vector, VALUES, _dtype(name, tasks)))
    return kept / max(1, total)


def _add_matrix(
    streams: Streams, name: str, rows: SparseRows | None, factors: Factors | None, dtype: torch.dtype
) -> torch.Tensor:
    """The difference as a reader sees it, dense."""
    bands = [] if factors is None else [(factors.left, factors.right, VALUES)]
    if rows is None:
        assert factors is not None
        return streams.add_low_rank(name, bands, dtype, factors.shape).to_dense()
    stored = streams.add_sparse(name, rows, VALUES, dtype)
    return multiplied_out(stored, streams.add_factors(name, bands)) if bands else stored.to_dense()


def _dtype(name: str, tasks: Sequence[Delta]) -> torch.dtype:
    """One that holds what any of the fine-tunes has there."""
    stored = [DTYPES[task.manifest.tensors[name].dtype] for task in tasks if name in task]
    return functools.reduce(torch.promote_types, stored)


def _params(files: Mapping[str, Path], lambdas: Sequence[float]) -> dict[str, str | float]:
    """What was fused: the lambda, the name and the digest, as a server shows it, of every source."""
    params: dict[str, str | float] = {}
    for number, (name, file) in enumerate(files.items(), 1):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        params |= {f"lambda{number}": lambdas[number - 1], f"name{number}": name, f"source{number}": f"sha256:{digest}"}
    return params


def _provenance(backbone: Backbone, deltas: Deltas) -> Provenance:
    """The fused model is one model: as large as the largest of those that it stands for."""
    return Provenance(
        finetuned=f"fusion of {', '.join(deltas)}"[:1024],
        tool=f"patchbay {patchbay.__version__}",
        original_bytes=max(delta.manifest.provenance.original_bytes for delta in deltas.values()),
        parameters=backbone.num_parameters,
    )
