"""Exact in-place patch and restore: the backbone is the merged model inside the context and bit for bit itself after
it.

W0 is never changed by arithmetic that is undone later: bf16 add-then-subtract leaves a quarter of the touched weights
changed. The overwritten bits are saved and written back. Knows nothing of requests and stores.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import torch

from patchbay.backbone import Backbone
from patchbay.checkpoint import as_bits
from patchbay.delta import Delta
from patchbay.delta.delta import apply_difference
from patchbay.errors import BackboneError, PatchInProgress
from patchbay.execute.vocabulary import Extended, appended_rows, extend
from patchbay.merge import MatrixPlan, MergePlan
from patchbay.merge.parts import planned_difference, planned_tensor

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """Bits that a patch overwrote: `positions` in the flattened tensor, or None for all of it."""

    tensor: torch.Tensor
    positions: torch.Tensor | None
    bits: torch.Tensor

    def restore(self) -> None:
        _write_bits(self.tensor, self.positions, self.bits)


@dataclass(eq=False)
class Patcher:
    """Patches one backbone. There is one patcher a backbone: it is what refuses a second patch while one is applied."""

    backbone: Backbone

    def __post_init__(self) -> None:
        self._applied = Lock()
        self.damaged = False  # the resident weights are not the base's any more

    @contextmanager
    def patched(self, plan: MergePlan, deltas: Sequence[Delta]) -> Iterator[None]:
        """Inside, every resident tensor is round(a W0 + sum_t C_t D_t), computed in fp32 and rounded once; a delta's
        appended rows stand behind those of the vocabulary.

        Restores on the way out, also when the body or the patching itself raises. Raises PatchInProgress when nested,
        InvalidRecipe where two deltas append rows.
        """
        self.check()
        appended = appended_rows(deltas)
        if not self._applied.acquire(blocking=False):
            raise PatchInProgress("another patch is applied to this backbone; finish it first")
        saved: list[Saved | Extended] = []
        try:
            self._apply(plan, deltas, saved)
            extend(self.backbone, appended, saved)
            yield
        finally:
            try:
                self._restore(saved)
            finally:
                self._applied.release()

    def check(self) -> None:
        """Raises BackboneError once the weights are damaged: nothing may be answered from them again."""
        if self.damaged:
            raise BackboneError("the resident weights are not the base's any more, as the log says: restart the server")

    def _restore(self, saved: list[Saved | Extended]) -> None:
        for item in reversed(saved):
            try:
                item.restore()
            except BaseException:
                self.damaged = True
                logger.exception("a tensor could not be restored")

    def _apply(self, plan: MergePlan, deltas: Sequence[Delta], saved: list[Saved | Extended]) -> None:
        for name, matrix in plan.matrices.items():
            self._patch_matrix(name, matrix, deltas, saved)
        for name, vector in plan.vectors.items():
            tensor = self.backbone.tensor(name)
            merged = apply_difference(tensor, vector.to(tensor.device), tensor.dtype)
            _overwrite(tensor, None, merged.reshape(-1), saved)
        for name, copied in plan.copied.items():
            tensor = self.backbone.tensor(name)
            _overwrite(tensor, None, copied.to(tensor).reshape(-1), saved)
        if plan.exact:
            self._patch_exceptions(deltas[0], saved)

    def _patch_matrix(
        self, name: str, plan: MatrixPlan, deltas: Sequence[Delta], saved: list[Saved | Extended]
    ) -> None:
        tensor, axis = self.backbone.tensor(name), self.backbone.specs[name].neuron_axis or 0
        if bool((plan.base_scale == 1).all()):
            positions, difference = planned_difference(name, plan, deltas, tensor, axis)
            before = tensor.view(-1) if positions is None else tensor.view(-1)[positions]
            _overwrite(tensor, positions, apply_difference(before, difference, tensor.dtype), saved)
        else:
            merged = planned_tensor(name, plan, deltas, tensor, axis, tensor.dtype)
            _overwrite(tensor, None, merged.reshape(-1), saved)

    def _patch_exceptions(self, delta: Delta, saved: list[Saved | Extended]) -> None:
        """Where the resident dtype can hold the fine-tune's values: in a narrower one round(base + delta) stands."""
        for name, exceptions in delta.exceptions.items():
            tensor = self.backbone.tensor(name)
            if torch.promote_types(tensor.dtype, exceptions.bits.dtype) == tensor.dtype:
                positions = exceptions.positions.to(tensor.device, torch.int64)
                _overwrite(tensor, positions, exceptions.bits.to(tensor.device, tensor.dtype), saved)


def _overwrite(
    tensor: torch.Tensor, positions: torch.Tensor | None, values: torch.Tensor, saved: list[Saved | Extended]
) -> None:
    bits = as_bits(tensor)
    # Saved before written, so that an interruption between the two restores what is there.
    saved.append(Saved(tensor, positions, bits.clone() if positions is None else bits[positions]))
    _write_bits(tensor, positions, as_bits(values.contiguous()))


def _write_bits(tensor: torch.Tensor, positions: torch.Tensor | None, bits: torch.Tensor) -> None:
    """As integers: a float copy may quieten a signalling NaN."""
    target = as_bits(tensor)
    if positions is None:
        target.copy_(bits)
    else:
        target[positions] = bits
