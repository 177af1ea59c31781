"""Parts -> a delta file: every tensor of the task vector in its encoding, and what merges need beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import patchbay
from patchbay.architecture import TensorSpec
from patchbay.checkpoint import Checkpoint, all_finite
from patchbay.compress.distil import Distilled
from patchbay.compress.folder import beside
from patchbay.compress.methods import Method
from patchbay.compress.options import ONE_SIZE, Options
from patchbay.compress.parts import DensePart, LowRankPart, Part, Progress, SparsePart, scaled
from patchbay.compress.statistics import Norms, neuron_statistics
from patchbay.delta import DeltaFile, Manifest, write_delta
from patchbay.delta.delta import LOSSLESS, find_exceptions, multiplied_out
from patchbay.delta.encode import DTYPE_NAMES, Streams
from patchbay.delta.manifest import FORMAT_VERSION, Base, Compression, Provenance, Statistics, Token
from patchbay.errors import FinetuneMismatch
from patchbay.task_vector import TaskVector

DEFAULT_DENSITY = 0.05
NOTHING_DISTILLED = Distilled()
# Below this many entries a matrix is stored whole: its positions and headers would cost more than they save.
TINY = 4096
UNNAMED = "-"
_NO_HASH = f"sha256:{'0' * 64}"
_SPARSE_VALUES = {"sign": "sign_row"}


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes deltas of one task vector, `named` after its base and its fine-tune or not."""

    vector: TaskVector
    tuned: Checkpoint
    options: Options
    on_progress: Progress | None = None
    named: bool = True

    @property
    def bytes_of_names(self) -> int:
        """At most, in the file: text that does not compress, and what a frame of other content takes more."""
        return len(f"{self.vector.identity.base}{self.vector.identity.finetuned}".encode()) + 16

    def write(self, method: Method, density: float, out: Path, distilled: Distilled = NOTHING_DISTILLED) -> DeltaFile:
        """What `method` keeps at `density`. Raises as `compress` does."""
        streams, norms = Streams(), Norms()
        pruner = method.pruner(density)
        for done, name in enumerate(sorted(self.vector.changed)):
            if self.on_progress:
                self.on_progress(done, len(self.vector.changed), name)
            tau = finite_difference(self.vector, name, self.options.keeps_bits)
            if is_prunable(self.vector.specs[name]):
                part = scaled(pruner(name, tau), distilled.scales.get(name, 1.0))
            else:
                part = whole_part(distilled.whole.get(name, tau), self.options)
            before, after = self._pair(name)
            stored = _store(streams, name, part, before, after)
            norms.add(tau, stored)
            self._add_beside(streams, name, tau, stored, before, after)
        self._add_others(streams)
        entries, data = streams.finish()
        compression = self._compression(method, density, tuned=bool(distilled.whole or distilled.scales))
        return write_delta(out, self._fields(compression, norms.statistics()) | {"tensors": entries}, data)

    def manifest(self) -> Manifest:
        """Of a candidate that is never written: everything but the tensors."""
        fields = self._fields(
            Compression(method=self.options.method, density=0.0), Statistics(relative_error=0, sigma=0)
        )
        own = {"tensors": {}, "format_version": FORMAT_VERSION, "payload_sha256": _NO_HASH}
        return Manifest.model_validate({**fields, **own})

    def _add_beside(
        self,
        streams: Streams,
        name: str,
        tau: torch.Tensor,
        stored: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
    ) -> None:
        if self.options.merge_statistics and self.vector.specs[name].neuron_axis is not None:
            found = neuron_statistics(tau, before, self.vector.specs[name].neuron_axis or 0)
            streams.add_neurons(name, found.energy, found.cosine)
        if self.options.exact and self.options.method != LOSSLESS:
            streams.add_exceptions(name, find_exceptions(before, stored, after))

    def _add_others(self, streams: Streams) -> None:
        for name, rows in self.vector.appended.items():
            if name not in streams.entries:
                _add(streams, name, SparsePart.empty(self.vector.specs[name].shape), rows.dtype)
            streams.add_appended(name, rows)
        for name, tensor in self.vector.added.items():
            streams.add_raw(name, tensor, copied=False)
        for name, tensor in self.vector.copied.items():
            streams.add_raw(name, tensor, copied=True)

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        pair = self.vector.pair(name)
        assert pair is not None, "compress makes its vector from two models"
        return pair

    def _compression(self, method: Method, density: float, *, tuned: bool) -> Compression:
        seeded = self.options.method == "random" or (self.options.method == "nps" and self.options.support == "sampled")
        return Compression(
            method=self.options.method,
            density=1.0 if self.options.method in ONE_SIZE else density,
            seed=self.options.seed if seeded else None,
            params={"values": self.options.values, **method.params, **({"tuned": True} if tuned else {})},
        )

    def _fields(self, compression: Compression, statistics: Statistics) -> dict[str, Any]:
        identity = self.vector.identity
        return {
            "base": Base(name=identity.base if self.named else UNNAMED, fingerprint=identity.base_fingerprint),
            "compression": compression,
            "statistics": statistics,
            "provenance": Provenance(
                finetuned=identity.finetuned if self.named else UNNAMED,
                tool=f"patchbay {patchbay.__version__}",
                original_bytes=self.tuned.num_bytes,
                parameters=sum(spec.numel for spec in self.vector.specs.values()),
            ),
            "missing": self.vector.missing,
            "prefix": identity.prefix,
            "config": dict(identity.config),
            "config_removed": identity.config_removed,
            "labels": identity.labels,
            "tokens": tuple(Token.model_validate(token) for token in identity.tokens),
        }


@contextmanager
def unpublished(out: Path) -> Iterator[Path]:
    """Where a file lies, on `out`'s disk, until it is known to be good; the folder that `out` belongs in is made."""
    with beside(out) as folder:
        yield folder / "delta"


def whole_part(tau: torch.Tensor, options: Options) -> DensePart:
    """Norms and biases. Four bits cost no measurable divergence; sixteen would be half of .05 bits a parameter."""
    if options.method == LOSSLESS:
        return DensePart(tau, LOSSLESS)
    if options.exact:
        return DensePart(tau, "fp32")
    values = options.values
    return DensePart(tau, values if values in ("fp32", "bf16", "int8") else "int4")


def is_prunable(spec: TensorSpec) -> bool:
    """Norms, biases, positional tensors and tiny matrices are never pruned: the most sensitive per parameter."""
    return spec.is_matrix and spec.numel >= TINY


def finite_difference(vector: TaskVector, name: str, exact: bool) -> torch.Tensor:
    """The fp32 difference. Raises FinetuneMismatch for NaN or infinity, unless `exact` gives their bits elsewhere."""
    tau = vector[name]
    if all_finite(tau):
        return tau
    if not exact:
        raise FinetuneMismatch(f"{name!r} contains NaN or infinity: the fine-tune is damaged", param=name)
    return torch.where(torch.isfinite(tau), tau, 0.0)  # the exceptions carry the bits


def as_stored(name: str, part: Part) -> torch.Tensor:
    """The difference as a reader of the file will see it, dense."""
    return _add(Streams(), name, part, torch.float32)


def _store(streams: Streams, name: str, part: Part, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    if after.dtype not in DTYPE_NAMES:
        raise FinetuneMismatch(f"{name!r} is stored as {after.dtype}, which a delta cannot stand for", param=name)
    if isinstance(part, DensePart) and part.values == LOSSLESS:
        return streams.add_lossless(name, before, after)
    return _add(streams, name, part, after.dtype)


def _add(streams: Streams, name: str, part: Part, dtype: torch.dtype) -> torch.Tensor:
    """Returns the difference as a reader will see it, dense."""
    match part:
        case SparsePart():
            values = _SPARSE_VALUES.get(part.values, part.values)
            times = part.multiples
            rows = streams.add_sparse(name, part.rows, values, dtype, seed=part.seed, multiples=times)
            return multiplied_out(rows, streams.add_factors(name, part.bands)) if part.bands else rows.to_dense()
        case DensePart():
            return streams.add_whole(name, part.difference, _SPARSE_VALUES.get(part.values, part.values), dtype)
        case LowRankPart():
            return streams.add_low_rank(name, part.bands, dtype, part.shape).to_dense()
