"""A fine-tuned checkpoint -> a delta file, tensor by tensor in bounded memory. Knows nothing of servers and stores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import patchbay
from patchbay.architecture import TensorSpec
from patchbay.checkpoint import Checkpoint, as_bits
from patchbay.compress.prune import KeepLargest, KeepRandom, Pruner
from patchbay.delta import DeltaFile, Exceptions, write_delta
from patchbay.delta.codecs import VALUES
from patchbay.delta.delta import apply_difference
from patchbay.delta.encode import DTYPE_NAMES, Streams
from patchbay.delta.manifest import Base, Compression, Provenance, Statistics, Token
from patchbay.errors import FinetuneMismatch, InvalidRecipe
from patchbay.task_vector import TaskVector

Progress = Callable[[int, int, str], None]
# Below this many entries a matrix is stored whole: its positions and headers would cost more than they save.
TINY = 4096
METHODS = ("magnitude", "random")
VALUE_NAMES = {"sign": "sign_row"} | {name: name for name in VALUES}


@dataclass(frozen=True, slots=True)
class Options:
    """`density`: fraction of matrix entries kept. `scale` multiplies kept values (magnitude only). `exact`: raw bits
    wherever base + delta does not round to the fine-tune, so that density 1 in fp32 is lossless."""

    method: str = "magnitude"
    density: float = 0.05
    values: str = "int8"
    scale: float = 1.0
    seed: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidRecipe(f"unknown method {self.method!r}; known: {', '.join(METHODS)}", param="method")
        if self.values not in VALUE_NAMES:
            raise InvalidRecipe(f"unknown values {self.values!r}; known: {', '.join(VALUE_NAMES)}", param="values")
        if not 0.0 <= self.density <= 1.0:
            raise InvalidRecipe(f"density {self.density} is not between 0 and 1", param="density")
        if not math.isfinite(self.scale):
            raise InvalidRecipe(f"scale {self.scale} is not a finite number", param="scale")
        if self.seed < 0:
            raise InvalidRecipe(f"seed {self.seed} is negative", param="seed")


@dataclass(frozen=True, slots=True)
class Report:
    """What compression cost and gave. `ratio`: bytes of the fine-tuned weight files over bytes of the delta file."""

    path: str
    num_bytes: int
    original_bytes: int
    ratio: float
    bits_per_parameter: float
    density: float
    relative_error: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Norms:
    """Sums over the whole vector for relative error and sigma."""

    error: float = 0.0
    square: float = 0.0
    kept: float = 0.0
    total: float = 0.0

    def add(self, tau: torch.Tensor, delta: torch.Tensor) -> None:
        tau, delta = tau.double(), delta.double()
        self.error += float((tau - delta).square().sum())
        self.square += float(tau.square().sum())
        self.kept += float(delta.abs().sum())
        self.total += float(tau.abs().sum())

    def statistics(self) -> Statistics:
        sigma = max(0.0, 1.0 - self.kept / self.total) if self.total else 0.0
        return Statistics(relative_error=(self.error / self.square) ** 0.5 if self.square else 0.0, sigma=sigma)


def compress(
    base: str | Path, finetuned: str | Path, out: Path, options: Options, on_progress: Progress | None = None
) -> Report:
    """Writes `out` and reports on it.

    Raises FinetuneMismatch where the two models do not belong together, or where a tensor holds NaN or infinity and
    `exact` is off.
    """
    started = time.monotonic()
    tuned = Checkpoint.open(finetuned)
    vector = TaskVector.from_models(base, tuned, _stage(on_progress, "compare"))
    streams, norms = _encode(vector, options, on_progress)
    entries, data = streams.finish()
    file = write_delta(
        out,
        {
            "base": Base(name=vector.identity.base, fingerprint=vector.identity.base_fingerprint),
            "compression": _compression(options),
            "statistics": norms.statistics(),
            "provenance": Provenance(
                finetuned=vector.identity.finetuned,
                tool=f"patchbay {patchbay.__version__}",
                original_bytes=tuned.num_bytes,
            ),
            "tensors": entries,
            "missing": vector.missing,
            "prefix": vector.identity.prefix,
            "config": dict(vector.identity.config),
            "config_removed": vector.identity.config_removed,
            "labels": vector.identity.labels,
            "tokens": tuple(Token.model_validate(token) for token in vector.identity.tokens),
        },
        data,
    )
    return _report(file, tuned, time.monotonic() - started)


def is_prunable(spec: TensorSpec) -> bool:
    """Norms, biases, positional tensors and tiny matrices are never pruned: the most sensitive per parameter."""
    return spec.is_matrix and spec.numel >= TINY


def _encode(vector: TaskVector, options: Options, on_progress: Progress | None) -> tuple[Streams, _Norms]:
    streams, norms = Streams(), _Norms()

    def read(name: str) -> torch.Tensor:
        return _finite(name, vector[name], options.exact)

    prunable = sorted(name for name in vector.changed if is_prunable(vector.specs[name]))
    pruner = _pruner(vector, prunable, read, options) if prunable else None
    for done, name in enumerate(sorted(vector.changed)):
        if on_progress:
            on_progress(done, len(vector.changed), name)
        tau = read(name)
        dtype = _target_dtype(vector, name)
        if pruner is not None and is_prunable(vector.specs[name]):
            stored = streams.add_sparse(name, pruner(name, tau), VALUE_NAMES[options.values], dtype).to_dense()
        else:
            stored = streams.add_dense(name, tau, options.values, dtype)
        norms.add(tau, stored)
        if options.exact:
            streams.add_exceptions(name, _exceptions(vector, name, stored))
    for name, tensor in vector.added.items():
        streams.add_raw(name, tensor, copied=False)
    for name, tensor in vector.copied.items():
        streams.add_raw(name, tensor, copied=True)
    return streams, norms


def _pruner(vector: TaskVector, names: list[str], read: Callable[[str], torch.Tensor], options: Options) -> Pruner:
    if options.method == "random":
        return KeepRandom({name: vector.specs[name].numel for name in names}, options.density, seed=options.seed)
    return KeepLargest(read, names, options.density, scale=options.scale)


def _finite(name: str, tau: torch.Tensor, exact: bool) -> torch.Tensor:
    finite = torch.isfinite(tau)
    if bool(finite.all()):
        return tau
    if not exact:
        raise FinetuneMismatch(f"{name!r} contains NaN or infinity: the fine-tune is damaged", param=name)
    return torch.where(finite, tau, 0.0)  # the exceptions carry the bits


def _target_dtype(vector: TaskVector, name: str) -> torch.dtype:
    pair = vector.pair(name)
    assert pair is not None, "compress makes its vector from two models"
    if pair[1].dtype not in DTYPE_NAMES:
        raise FinetuneMismatch(f"{name!r} is stored as {pair[1].dtype}, which a delta cannot stand for", param=name)
    return pair[1].dtype


def _exceptions(vector: TaskVector, name: str, stored: torch.Tensor) -> Exceptions:
    pair = vector.pair(name)
    assert pair is not None, "compress makes its vector from two models"
    before, after = pair
    reached = apply_difference(before, stored, after.dtype)
    positions = torch.nonzero(as_bits(reached.contiguous()) != as_bits(after.contiguous())).flatten()
    return Exceptions(positions, after.reshape(-1)[positions])


def _compression(options: Options) -> Compression:
    params: dict[str, int | float | str | bool] = {"values": options.values}
    if options.method == "magnitude" and options.scale != 1.0:
        params["scale"] = options.scale
    seed = options.seed if options.method == "random" else None
    return Compression(method=options.method, density=options.density, seed=seed, params=params)


def _report(file: DeltaFile, tuned: Checkpoint, seconds: float) -> Report:
    parameters = sum(stored.numel for stored in tuned.tensors.values())
    return Report(
        path=str(file.path),
        num_bytes=file.num_bytes,
        original_bytes=tuned.num_bytes,
        ratio=tuned.num_bytes / file.num_bytes,
        bits_per_parameter=8 * file.num_bytes / max(1, parameters),
        density=file.manifest.compression.density,
        relative_error=file.manifest.statistics.relative_error,
        seconds=seconds,
    )


def _stage(on_progress: Progress | None, stage: str) -> Progress | None:
    if on_progress is None:
        return None
    return lambda done, total, note: on_progress(done, total, f"{stage} {note}")
