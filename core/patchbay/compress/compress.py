"""A fine-tuned model -> a delta file. Knows nothing of servers and stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from patchbay.adapters import open_finetuned
from patchbay.backbone import Backbone
from patchbay.checkpoint import Checkpoint
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.distil import Distilled, distil
from patchbay.compress.methods import Method, find_method
from patchbay.compress.options import Options
from patchbay.compress.parts import Progress, Vector
from patchbay.compress.problem import Problem
from patchbay.compress.record import Record
from patchbay.compress.search import Evaluation
from patchbay.compress.statistics import squared_norm
from patchbay.compress.targets import fit_kl, fit_size
from patchbay.compress.write import DEFAULT_DENSITY, Writer, finite_difference, is_prunable
from patchbay.delta import DeltaFile
from patchbay.task_vector import TaskVector

__all__ = ["Options", "Progress", "Report", "compress"]


@dataclass(frozen=True, slots=True)
class Report:
    """What compression cost and gave.

    `ratio`: bytes of the fine-tuned weight files over bytes of the delta file. `bits_per_parameter`: of the whole file
    over the base's parameters; `bits_without_heads` leaves out tensors that only the fine-tune has, which are new
    parameters and no difference. `score` is the best one of the search, None without one; `divergence` is that of the
    file as it was written, on the calibration inputs, None without any. `tuned`: whether norms, biases and scales were,
    at the end. `sizes`: bytes by kind. `head_alone`: the fine-tune brings a head and leaves the base as it is.
    """

    path: str
    num_bytes: int
    original_bytes: int
    ratio: float
    bits_per_parameter: float
    bits_without_heads: float
    density: float
    relative_error: float
    evaluations: int
    score: float | None
    divergence: float | None
    tuned: bool
    sizes: dict[str, int]
    seconds: float
    head_alone: bool = False  # of servers that do not say

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compress(
    base: str | Path,
    finetuned: str | Path,
    out: Path,
    options: Options,
    *,
    calibration: Calibration | Path | None = None,
    on_progress: Progress | None = None,
    history: Sequence[Evaluation] = (),
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> Report:
    """Writes `out` and reports on it.

    `history` holds the evaluations of an earlier run with the same inputs that was cut off: they are replayed, and the
    result is that of an uninterrupted run, to the bit. `on_evaluation` is told of every new one. Raises
    FinetuneMismatch where the two models do not belong together or a tensor holds NaN or infinity and `exact` is off;
    InvalidRecipe for options that do not go together; InputError for calibration inputs that do not suit the model.
    """
    started = time.monotonic()
    inputs = None if calibration is None else Calibration.of(calibration)
    old = Checkpoint.open(base)
    tuned = open_finetuned(finetuned, old)
    vector = TaskVector.from_models(old, tuned, _stage(on_progress, "compare"))
    record = Record(options.evaluations, history, on_evaluation, _stage(on_progress, "search"))
    writer = Writer(vector, tuned, options, _stage(on_progress, "write"))
    problem = _problem(vector, writer, options, record)
    if inputs is not None:
        problem.judge = Judge(Backbone.load(base, device="cpu"), problem.full(), inputs, options.score)
    method = find_method(problem, options)
    file, divergence = _write(writer, method, problem, out, on_progress)
    return _report(file, record, divergence, time.monotonic() - started)


def _write(
    writer: Writer, method: Method, problem: Problem, out: Path, on_progress: Progress | None
) -> tuple[DeltaFile, float | None]:
    """The file and its divergence."""
    options, on_distil, on_fit = writer.options, _stage(on_progress, "distil"), _stage(on_progress, "fit")

    def distilled(density: float) -> Distilled:
        if not options.distil or method.distils == "nothing" or problem.judge is None:
            return Distilled()
        everything = method.distils == "everything"
        parts = problem.prune(method.pruner(density))
        return distil(problem, parts, vectors=everything, seed=options.seed, on_progress=on_distil)

    if options.target_size is not None:
        file = fit_size(writer, method, problem.vector.numel, out, options.target_size, distilled)
        return file, _divergence(file, problem)
    if options.target_kl is not None:
        density = fit_kl(problem, method, options.target_kl, on_fit)
    else:
        density = DEFAULT_DENSITY if options.density is None else options.density
        method.tune(density)
    file = writer.write(method, density, out, distilled(density))
    divergence = _divergence(file, problem)
    if divergence is not None and options.target_kl is not None and not divergence <= options.target_kl:
        # Distilling looks at some of the inputs, before values are encoded: the bound is on all, and on the file.
        file = writer.write(method, density, out)
        divergence = _divergence(file, problem)
    return file, divergence


def _problem(vector: TaskVector, writer: Writer, options: Options, record: Record) -> Problem:
    names = tuple(sorted(name for name in vector.changed if is_prunable(vector.specs[name])))

    def read(name: str) -> torch.Tensor:
        return finite_difference(vector, name, options.keeps_bits)

    prunable = Vector(
        names=names,
        read=read,
        sizes={name: vector.specs[name].numel for name in names},
        ratio=_ratio(vector, names, read),
    )
    whole = {name: read(name) for name in vector.changed if name not in prunable.sizes}
    return Problem(prunable, writer.manifest(), whole, vector.added, vector.copied, vector.appended, record)


def _ratio(vector: TaskVector, names: Sequence[str], read: Callable[[str], torch.Tensor]) -> float:
    """rms(tau) / rms(base) over the prunable matrices."""
    change = sum(squared_norm(read(name)) for name in names)
    pairs = (vector.pair(name) for name in names)
    base = sum(squared_norm(pair[0].to(torch.float32)) for pair in pairs if pair is not None)
    return (change / base) ** 0.5 if base else 0.0


def _divergence(file: DeltaFile, problem: Problem) -> float | None:
    """Of what a server will serve: values are encoded by now, and norms and scales tuned."""
    if problem.judge is None:
        return None
    backbone = problem.judge.backbone
    loaded = file.load(backbone.specs, backbone.fingerprint, finite=False, read_base=backbone.stored)
    return problem.judge.divergence(loaded)


def _report(file: DeltaFile, record: Record, divergence: float | None, seconds: float) -> Report:
    manifest, sizes = file.manifest, dict(file.itemised())
    parameters = max(1, manifest.provenance.parameters or 1)
    return Report(
        path=str(file.path),
        num_bytes=file.num_bytes,
        original_bytes=manifest.provenance.original_bytes,
        ratio=manifest.provenance.original_bytes / file.num_bytes,
        bits_per_parameter=8 * file.num_bytes / parameters,
        bits_without_heads=8 * (file.num_bytes - sizes["added"]) / parameters,
        density=manifest.compression.density,
        relative_error=manifest.statistics.relative_error,
        evaluations=len(record.evaluations),
        score=record.best_score,
        divergence=divergence,
        tuned=bool(manifest.compression.params.get("tuned")),
        sizes=sizes,
        seconds=seconds,
        head_alone=manifest.is_head_alone,
    )


def _stage(on_progress: Progress | None, stage: str) -> Progress | None:
    if on_progress is None:
        return None
    return lambda done, total, note: on_progress(done, total, f"{stage} {note}")
