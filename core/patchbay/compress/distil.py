"""The last step of a compression: what is stored anyway is tuned to make up for what was left out.

Norms and biases are stored whole, and every matrix has a scale: they cost the same bytes whatever their values are. A
few steps of gradient descent on the divergence from the full fine-tune, on unlabelled inputs, let them absorb part of
the error of pruning. BitDelta (arXiv 2402.10193) distils its scales so; here norms and biases are tuned, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Judge
from patchbay.compress.parts import DensePart, Part, Progress, SparsePart
from patchbay.compress.problem import Problem

EPOCHS = 4
VECTOR_RATE = 1e-3
SCALE_RATE = 2e-2
HELD_BACK = 4  # every fourth batch decides when to stop
MIN_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Distilled:
    """`whole`: differences of norms and biases in place of the fine-tune's; `scales`: factors of pruned matrices."""

    whole: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Variable:
    """A tensor of the model as `base + scale * difference` at `positions`, whose scale is tuned; or, where there are
    none, as `base + difference`, which is tuned itself.
    """

    resident: torch.Tensor
    positions: torch.Tensor | slice | None
    base: Callable[[], torch.Tensor]  # fp32
    difference: Callable[[], torch.Tensor]
    value: torch.Tensor  # what Adam moves: the difference itself, or one scale

    def write(self) -> None:
        """round(base + difference) into the model: the master copy is fp32 whatever the model's dtype is."""
        if self.positions is None:
            merged = self.base() + self.value
        else:
            merged = torch.add(self.base(), self.difference(), alpha=float(self.value))
        with torch.no_grad():
            if self.positions is None:
                self.resident.copy_(merged)
            else:
                self.resident.view(-1)[self.positions] = merged.to(self.resident.dtype)

    def collect(self, parameter: torch.Tensor) -> None:
        """The gradient of `value` from that of the tensor, which is freed at once."""
        gradient = parameter.grad
        assert gradient is not None
        if self.positions is not None:
            gradient = torch.dot(gradient.reshape(-1)[self.positions].float(), self.difference()).reshape(1)
        self.value.grad = gradient.float().clone()
        parameter.grad = None


def distil(
    problem: Problem, parts: Mapping[str, Part], *, vectors: bool, seed: int = 0, on_progress: Progress | None = None
) -> Distilled:
    """Tunes the scales of `parts`, and norms and biases if `vectors`, on three quarters of the calibration batches.

    The state with the lowest divergence on the rest is returned: without any tuning, if that is best, and where there
    is no judge, fewer than MIN_BATCHES batches, a score other than the divergence, or nothing that has changed.
    """
    judge = problem.judge
    if judge is None or judge.score_name != "kl" or judge.num_batches < MIN_BATCHES:
        return Distilled()
    held = [index for index in range(judge.num_batches) if index % HELD_BACK == HELD_BACK - 1]
    used = [index for index in range(judge.num_batches) if index not in held]
    tuned = _variables(problem, judge, parts, vectors)
    if not tuned:
        return Distilled()  # a fine-tune that is its base, but for a head
    with judge.patched(problem.candidate(parts)), _gradients(tuned):
        return _descend(judge, tuned, used, held, seed, on_progress)


def _descend(
    judge: Judge,
    tuned: Mapping[str, _Variable],
    used: list[int],
    held: list[int],
    seed: int,
    on_progress: Progress | None,
) -> Distilled:
    rates = {True: VECTOR_RATE, False: SCALE_RATE}
    groups = [{"params": [v.value], "lr": rates[v.positions is None]} for v in tuned.values()]
    optimizer = torch.optim.Adam(groups)
    total, rng = EPOCHS * len(used), np.random.default_rng(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (total + 1))
    best, found = judge.batch_divergence(held), Distilled()
    for epoch in range(EPOCHS):
        for done, index in enumerate(rng.permutation(used).tolist()):
            judge.batch_loss(index).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            for variable in tuned.values():
                variable.write()
            if on_progress:
                on_progress(epoch * len(used) + done + 1, total, f"divergence on held-back inputs {best:.4g}")
        reached = judge.batch_divergence(held)
        if reached < best:
            best, found = reached, _state(tuned)
    return found


def _variables(problem: Problem, judge: Judge, parts: Mapping[str, Part], vectors: bool) -> dict[str, _Variable]:
    """Of the model as it is before it is patched. Buffers have no gradient and are left as they are."""
    parameters = dict(judge.backbone.model.named_parameters())
    places = {name: parameters.get(judge.backbone.specs[name].parameter) for name in (*parts, *problem.whole)}
    tuned: dict[str, _Variable] = {}
    for name, part in parts.items():
        resident = places[name]
        if resident is not None:
            positions, difference = _entries(part)
            if isinstance(positions, slice):  # read for every step, as the difference is multiplied out for each
                base = partial(_stored, judge.backbone, name, resident)
            else:
                base = partial(_same, resident.detach().view(-1)[positions].float())
            tuned[name] = _Variable(resident, positions, base, difference, torch.ones(1))
    for name, whole in problem.whole.items() if vectors else ():
        resident = places[name]
        if resident is not None:
            base = partial(_same, resident.detach().float().clone())
            tuned[name] = _Variable(resident, None, base, partial(_same, whole), whole.clone())
    return tuned


def _entries(part: Part) -> tuple[torch.Tensor | slice, Callable[[], torch.Tensor]]:
    """Where a part changes a tensor, and by how much: held where it is sparse, made anew where it is not."""
    if isinstance(part, SparsePart) and not part.bands:
        return part.rows.positions.long(), partial(_same, part.rows.values)
    if isinstance(part, DensePart):
        return slice(None), partial(_same, part.difference.reshape(-1))
    return slice(None), lambda: part.to_dense().reshape(-1)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _stored(backbone: Backbone, name: str, resident: torch.Tensor) -> torch.Tensor:
    """As it is without any patch."""
    return backbone.stored(name).to(resident).reshape(-1).float()


@contextmanager
def _gradients(tuned: Mapping[str, _Variable]) -> Iterator[None]:
    """Gradients of the tuned tensors alone, each taken and freed as soon as it is there."""
    hooks = []
    try:
        for variable in tuned.values():
            variable.resident.requires_grad_(True)
            hook = variable.resident.register_post_accumulate_grad_hook(variable.collect)  # type: ignore[no-untyped-call]
            hooks.append(hook)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for variable in tuned.values():
            variable.resident.requires_grad_(False)
            variable.resident.grad = None


def _state(tuned: Mapping[str, _Variable]) -> Distilled:
    return Distilled(
        {name: v.value.clone() for name, v in tuned.items() if v.positions is None},
        {name: float(v.value) for name, v in tuned.items() if v.positions is not None},
    )
