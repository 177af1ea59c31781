"""A merged model as a PEFT adapter: truncated SVD of every linear layer's difference, other modules whole.

What neither can carry (parameters of a module that has others inside) is lost, and said to be. Knows nothing of how
models are merged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from patchbay.architecture import Architecture, Kind, Task, TensorSpec, empty_model
from patchbay.checkpoint import Checkpoint, StoredTensor
from patchbay.compress.card import model_card
from patchbay.compress.folder import unfinished_folder
from patchbay.compress.low_rank import singular_factors
from patchbay.compress.merged_model import MergedModel
from patchbay.compress.shards import DTYPE_NAMES
from patchbay.compress.statistics import squared_norm
from patchbay.compress.terms import Progress
from patchbay.errors import InvalidRecipe

PREFIX = "base_model.model."
MAX_RANK = 4096
LAYERS = (Kind.LINEAR, Kind.CONV1D)
_TASK_TYPES: Mapping[Task, str] = {Task.CAUSAL_LM: "CAUSAL_LM", Task.SEQ2SEQ_LM: "SEQ_2_SEQ_LM"}


@dataclass(frozen=True, slots=True)
class LoraReport:
    """`errors`: |difference - what the adapter has of it| / |difference|, of all tensors of a kind and `overall`.

    `lost`: tensors that the adapter lacks -> their share of the squared norm of all differences.
    """

    path: str
    rank: int
    errors: Mapping[str, float]
    lost: Mapping[str, float]
    layers: int
    modules: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Sums:
    """Squared norms: of differences and of what is missing of them, by kind."""

    total: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, total: float, error: float) -> None:
        self.total[kind] = self.total.get(kind, 0.0) + total
        self.error[kind] = self.error.get(kind, 0.0) + error

    def relative(self) -> dict[str, float]:
        kinds = {kind: _root(self.error[kind], total) for kind, total in sorted(self.total.items())}
        return kinds | {"overall": _root(sum(self.error.values()), sum(self.total.values()))}


@dataclass
class _Adapter:
    """Tensors under the names of PEFT's file, and the modules that they are for."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)
    has_biases: bool = False


def write_lora(model: MergedModel, out: Path, rank: int, on_progress: Progress | None = None) -> LoraReport:
    """Writes adapter_config.json, adapter_model.safetensors and a card into the folder `out`.

    Raises InputError where `out` exists and is not empty, InvalidRecipe for a rank that is none, added tokens and
    merges that change no linear layer, and what reading the terms raises.
    """
    if not 1 <= rank <= MAX_RANK:
        raise InvalidRecipe(f"rank {rank}: 1 to {MAX_RANK:,} are possible", param="rank")
    if model.appended:
        raise InvalidRecipe("an adapter cannot add tokens to the vocabulary: export the format hf", param="format")
    with unfinished_folder(out) as folder:
        writer = _Writer(model, rank)
        writer.add_all(on_progress)
        save_file(writer.adapter.tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors gives it to its owner alone
        (folder / "adapter_config.json").write_text(json.dumps(writer.config(), indent=2) + "\n", "utf-8")
        (folder / "README.md").write_text(model_card(model, out.name, "adapter", "peft"), "utf-8")
    return writer.report(out)


class _Writer:
    """`specs` and `net` are those of the merged model, which may have a head that the base has not."""

    def __init__(self, model: MergedModel, rank: int) -> None:
        self.model, self.adapter, self.sums = model, _Adapter(), _Sums()
        self.lost: dict[str, float] = {}
        checkpoint = _as_checkpoint(model)
        self.architecture = Architecture.of(checkpoint)
        self.net: PreTrainedModel = empty_model(checkpoint, self.architecture.task)
        self.owners = {
            parameter: spec for spec in self.architecture.specs.values() for parameter in (spec.parameter, *spec.tied)
        }
        sides = [min(spec.shape) for spec in self.architecture.specs.values() if spec.kind in LAYERS]
        self.rank = min(rank, max(sides, default=1))

    def add_all(self, on_progress: Progress | None) -> None:
        whole: dict[str, torch.Tensor] = dict(self.model.added)  # of modules that are saved whole, by stored name
        for done, (name, tensor) in enumerate(self.model.changed(torch.float32)):
            if on_progress:
                on_progress(done, len(self.model.base.specs), name)
            spec = self.architecture.specs.get(self.model.prefix + name)
            if spec is not None:  # the head's owner has no such tensor
                self._add(spec, name, tensor, whole)
        if not self.adapter.layers:
            raise InvalidRecipe("the merge changes no linear layer: an adapter has nothing to adapt", param="format")
        for name in self.model.added:
            self.adapter.whole.update(self._modules(self.architecture.specs[name]))
        for module in sorted(self.adapter.whole):
            self._save_module(module, whole)

    def _add(self, spec: TensorSpec, name: str, tensor: torch.Tensor, whole: dict[str, torch.Tensor]) -> None:
        before = self.model.base.stored(name)
        difference = tensor.float() - before.float()
        energy = squared_norm(difference)
        if not energy:
            return
        module, _, part = spec.parameter.rpartition(".")
        kind = spec.kind.value
        if spec.kind in LAYERS and not spec.tied and not spec.is_head:
            self.sums.add(kind, energy, self._add_layer(module, spec.kind, difference, before.dtype))
        elif part == "bias" and self._is_layer(module):
            self.adapter.tensors[f"{PREFIX}{module}.base_layer.bias"] = tensor.to(before.dtype)
            self.adapter.has_biases = True
            self.sums.add(kind, energy, 0.0)
        elif modules := self._modules(spec):
            self.adapter.whole.update(modules)
            whole[spec.name] = tensor.to(before.dtype)
            self.sums.add(kind, energy, 0.0)
        else:
            self.lost[name] = energy
            self.sums.add(kind, energy, energy)

    def _add_layer(self, module: str, kind: Kind, difference: torch.Tensor, dtype: torch.dtype) -> float:
        """W x + B A x: B A is the difference, [out, in]. Returns what is missing of its squared norm."""
        matrix = difference.T if kind is Kind.CONV1D else difference
        left, right = singular_factors(matrix, self.rank)
        up, down = (torch.nn.functional.pad(side, (0, self.rank - side.shape[1])).to(dtype) for side in (left, right))
        self.adapter.tensors[f"{PREFIX}{module}.lora_A.weight"] = down.T.contiguous()
        self.adapter.tensors[f"{PREFIX}{module}.lora_B.weight"] = up.contiguous()
        self.adapter.layers.append(module)
        return squared_norm(matrix - up.float() @ down.float().T)

    def _is_layer(self, module: str) -> bool:
        """Whether LoRA is what the module's weight gets, if that changes."""
        weight = self.owners.get(f"{module}.weight")
        return weight is not None and weight.kind in LAYERS and not weight.tied and not weight.is_head

    def _modules(self, spec: TensorSpec) -> list[str]:
        """The modules that the tensor is in, under all tied names; none where one of them has modules inside."""
        names = [parameter.rpartition(".")[0] for parameter in (spec.parameter, *spec.tied)]
        return names if all(not list(self.net.get_submodule(name).children()) for name in names) else []

    def _save_module(self, module: str, whole: Mapping[str, torch.Tensor]) -> None:
        for part in self.net.get_submodule(module).state_dict():
            spec = self.owners.get(f"{module}.{part}")
            if spec is not None:
                tensor = whole.get(spec.name)
                stored = self.model.base.stored(spec.name.removeprefix(self.model.prefix)) if tensor is None else tensor
                self.adapter.tensors[f"{PREFIX}{module}.{part}"] = stored.clone()

    def config(self) -> dict[str, Any]:
        """adapter_config.json. alpha is the rank, so that PEFT scales by 1."""
        kinds = {self.owners[f"{module}.weight"].kind for module in self.adapter.layers}
        named = type(self.net)
        task = _TASK_TYPES.get(self.architecture.task)
        mapping = {"base_model_class": named.__name__, "parent_library": named.__module__}
        return {
            "peft_type": "LORA",
            "task_type": task,
            "auto_mapping": None if task else mapping,
            "base_model_name_or_path": self.model.base.name,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "bias": "all" if self.adapter.has_biases else "none",
            "fan_in_fan_out": Kind.CONV1D in kinds,
            "target_modules": sorted(self.adapter.layers),
            "modules_to_save": sorted(self.adapter.whole) or None,
            "inference_mode": True,
        }

    def report(self, out: Path) -> LoraReport:
        total = sum(self.sums.total.values())
        return LoraReport(
            path=str(out),
            rank=self.rank,
            errors=self.sums.relative(),
            lost={name: energy / total for name, energy in self.lost.items()},
            layers=len(self.adapter.layers),
            modules=len(self.adapter.whole),
            bytes=sum(tensor.nbytes for tensor in self.adapter.tensors.values()),
        )


def _as_checkpoint(model: MergedModel) -> Checkpoint:
    """The merged model's names, shapes and config, without weights."""
    base = model.base.checkpoint
    missing = set(model.identity.missing) if model.identity else set()
    kept = (stored for name, stored in base.tensors.items() if name not in missing)
    tensors = {model.prefix + stored.name: replace(stored, name=model.prefix + stored.name) for stored in kept}
    return Checkpoint(base.folder, model.config, tensors | {stored.name: stored for stored in _heads(model)})


def _heads(model: MergedModel) -> Iterable[StoredTensor]:
    for name, tensor in model.added.items():
        yield StoredTensor(name, tuple(tensor.shape), DTYPE_NAMES[tensor.dtype], model.base.checkpoint.folder)


def _root(part: float, whole: float) -> float:
    return float((part / whole) ** 0.5) if whole else 0.0
