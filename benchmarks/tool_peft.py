"""PEFT's `add_weighted_adapter`, on LoRA extractions of the fine-tunes' linear layers.

Norms, biases and embeddings stay the base's: an adapter that has some of them whole cannot be merged by it.
"""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from benchmarks.merges import Member
from benchmarks.other_tools import Made, Missing, Params, Refused
from patchbay.architecture import Kind, TensorSpec
from patchbay.backbone import Backbone
from patchbay.compress.low_rank import singular_factors
from patchbay.task_vector import TaskVector

RANK = 64
HOW = "PEFT's rows are left out: there is no package peft. For them `pip install 'patchbay[test]'`"
DENSITY = 0.2  # there is no default; its guide to merging takes this one
UNMERGED = "unmerged"  # each task under its own adapter: what the extraction alone costs
METHODS: Mapping[str, Params] = {
    UNMERGED: {},
    "linear": {},
    "svd": {},
    **{method: {"density": DENSITY} for method in ("ties", "dare_linear", "dare_ties", "magnitude_prune")},
}
MERGED = "merged"  # the new adapter's name
SEED = 0


@dataclass(frozen=True, slots=True)
class Peft:
    """`merge` takes the time of `add_weighted_adapter`, and for UNMERGED that of the extractions."""

    version: str
    name: ClassVar[str] = "peft"
    source: ClassVar[str] = f"peft rank {RANK}"
    methods: ClassVar[Mapping[str, Params]] = METHODS

    @classmethod
    def find(cls) -> Self:
        """Raises Missing."""
        try:
            return cls(importlib.metadata.version("peft"))
        except importlib.metadata.PackageNotFoundError:
            raise Missing(HOW) from None

    def merge(self, members: tuple[Member, ...], method: str) -> Made:
        adapted = _adapted(members[0].case.base, tuple(member.case.finetuned for member in members))
        names = list(adapted.adapters)
        if method == UNMERGED:
            size = sum(adapted.num_bytes(name) for name in names)
            return Made([adapted.differences(name) for name in names], "adapters", adapted.seconds, size)
        started = time.perf_counter()
        adapted.add_merged(method, METHODS[method])
        seconds = time.perf_counter() - started
        try:
            return Made([adapted.differences(MERGED)], "adapter", seconds, adapted.num_bytes(MERGED))
        finally:
            adapted.model.delete_adapter(MERGED)


@dataclass(frozen=True)
class _Adapted:
    """The encoder with one adapter a fine-tune. `layers`: LoRA layers by the base's names of their weights."""

    model: Any
    layers: Mapping[str, Any]
    adapters: tuple[str, ...]
    seconds: float

    def add_merged(self, method: str, params: Params) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)  # its draws are from the global generator
            try:
                weights = [1.0] * len(self.adapters)
                self.model.add_weighted_adapter(list(self.adapters), weights, MERGED, combination_type=method, **params)
            except ValueError as error:
                raise Refused(str(error)) from error

    def differences(self, adapter: str) -> Mapping[str, torch.Tensor]:
        with torch.no_grad():
            return {name: layer.get_delta_weight(adapter) for name, layer in self.layers.items()}

    def num_bytes(self, adapter: str) -> int:
        sides = [side[adapter].weight for layer in self.layers.values() for side in (layer.lora_A, layer.lora_B)]
        return sum(weight.nbytes for weight in sides)


@lru_cache(maxsize=1)
def _adapted(base: Path, finetuned: tuple[Path, ...]) -> _Adapted:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - an extra, needed for this function only

    backbone = Backbone.load(base, dtype="fp32", device="cpu")  # not the resident one: PEFT replaces its layers
    layers = {name: _module(spec) for name, spec in backbone.specs.items() if _is_layer(spec)}
    adapters = tuple(f"task{number}" for number in range(len(finetuned)))

    def config() -> LoraConfig:  # PEFT writes into the one that it is given
        return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sorted(layers.values()), init_lora_weights=False)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT reads it
        model: Any = get_peft_model(backbone.model, config(), adapters[0])
        for adapter in adapters[1:]:
            model.add_adapter(adapter, config())
    found = {name: model.base_model.model.get_submodule(module) for name, module in layers.items()}
    started = time.perf_counter()
    for adapter, folder in zip(adapters, finetuned, strict=True):
        vector = TaskVector.from_models(base, folder)
        for name, layer in found.items():
            _extract(vector[name], layer, adapter)
    return _Adapted(model, found, adapters, time.perf_counter() - started)


def _extract(difference: torch.Tensor, layer: Any, adapter: str) -> None:
    """The best B A of the rank: [out, r] [r, in]."""
    left, right = singular_factors(difference, RANK)
    up, down = (torch.nn.functional.pad(side, (0, RANK - side.shape[1])) for side in (left, right))
    with torch.no_grad():
        layer.lora_A[adapter].weight.copy_(down.T)
        layer.lora_B[adapter].weight.copy_(up)


def _is_layer(spec: TensorSpec) -> bool:
    return spec.kind is Kind.LINEAR and not spec.tied and not spec.is_head


def _module(spec: TensorSpec) -> str:
    return spec.parameter.removesuffix(".weight")
