"""What a checkpoint's tensors are: the task it was built for and, for every stored tensor, its place in the model.

Works on the meta device: no weight is read here, and nothing is known of deltas.
"""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.pytorch_utils import Conv1D

from patchbay.checkpoint import Checkpoint
from patchbay.errors import UnsupportedBackbone

# Modules of installed packages that register a model type with transformers when they are imported, by its name.
PLUGINS = "patchbay.models"


class Task(StrEnum):
    """What a backbone answers; the value is what `--task` takes."""

    CAUSAL_LM = "causal-lm"
    SEQ2SEQ_LM = "seq2seq-lm"
    TEXT_CLASSIFICATION = "text-classification"
    IMAGE_CLASSIFICATION = "image-classification"
    EEG_CLASSIFICATION = "eeg-classification"
    EMBEDDING = "embedding"


class AutoModelForEEGClassification(_BaseAutoModelClass):
    """transformers has none; whoever has such a model registers it here."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())  # type: ignore[assignment]


AUTO_CLASS: Mapping[Task, Any] = {
    Task.CAUSAL_LM: transformers.AutoModelForCausalLM,
    Task.SEQ2SEQ_LM: transformers.AutoModelForSeq2SeqLM,
    Task.TEXT_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    Task.IMAGE_CLASSIFICATION: transformers.AutoModelForImageClassification,
    Task.EEG_CLASSIFICATION: AutoModelForEEGClassification,
    Task.EMBEDDING: transformers.AutoModel,
}
_SUFFIX: Mapping[str, Task] = {
    "ForCausalLM": Task.CAUSAL_LM,
    "LMHeadModel": Task.CAUSAL_LM,
    "ForConditionalGeneration": Task.SEQ2SEQ_LM,
    "ForSequenceClassification": Task.TEXT_CLASSIFICATION,
    "ForImageClassification": Task.IMAGE_CLASSIFICATION,
    "ForEEGClassification": Task.EEG_CLASSIFICATION,
}
CLASSIFIERS = (Task.TEXT_CLASSIFICATION, Task.IMAGE_CLASSIFICATION, Task.EEG_CLASSIFICATION)


class Kind(StrEnum):
    """What a tensor does. Matrices (the first four) have neurons; the others are merged as plain vectors."""

    LINEAR = "linear"
    CONV1D = "conv1d"  # GPT-2's transposed linear, stored [in, out]
    EMBEDDING = "embedding"
    CONV = "conv"
    NORM = "norm"
    BIAS = "bias"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One stored tensor. `name` is the file's, `parameter` the model's; `neuron_axis` indexes output neurons;
    `is_vocabulary` marks the input and output embeddings, whose rows are tokens."""

    name: str
    parameter: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    neuron_axis: int | None
    tied: tuple[str, ...]
    is_head: bool
    is_vocabulary: bool = False

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def is_matrix(self) -> bool:
        return self.neuron_axis is not None


@dataclass(frozen=True)
class Architecture:
    """The model a checkpoint describes, without weights, and the spec of every stored tensor that it uses."""

    task: Task
    config: PretrainedConfig
    prefix: str  # transformers' base_model_prefix: `bert` in BertForSequenceClassification
    is_base_model: bool  # True for a plain encoder, whose parameters carry no prefix
    specs: Mapping[str, TensorSpec]
    unused: tuple[str, ...]  # stored, but not part of the model for this task
    copies: Mapping[str, str]  # second stored copies of a tied tensor -> the stored name that has the spec

    @classmethod
    def of(cls, checkpoint: Checkpoint, task: Task | None = None) -> Architecture:
        """Reads the config and names every tensor.

        Raises UnsupportedBackbone for a quantised model, one that needs remote code, an unknown architecture, a config
        that does not fit the task or the stored shapes, or tensors that transformers fuses while loading (packed
        experts).
        """
        _check_config(checkpoint)
        task = task or detect_task(checkpoint.config)
        model = empty_model(checkpoint, task)
        places = resident_names(model, list(checkpoint.tensors))
        _check_shapes(checkpoint, model, places)
        groups = _tied_groups(model)
        copies = _copies(places, groups)
        specs = {spec.name: spec for spec in _specs(checkpoint, model, places, groups, task) if spec.name not in copies}
        unused = tuple(name for name in checkpoint.tensors if name not in places)
        prefix = model.base_model_prefix
        return cls(task, model.config, prefix, not hasattr(model, prefix), specs, unused, copies)


def detect_task(config: Mapping[str, Any]) -> Task:
    """The task in `config.architectures`; encoders without a head of their own are embedding models."""
    architectures = config.get("architectures") or []
    if not architectures:
        raise UnsupportedBackbone("config.json names no architectures: say what to serve with --task", param="task")
    return next((task for suffix, task in _SUFFIX.items() if architectures[0].endswith(suffix)), Task.EMBEDDING)


def resident_names(model: PreTrainedModel, stored: list[str]) -> dict[str, str]:
    """Stored name -> name in the model, by transformers' own renames and prefix rules; names without a place are
    absent.

    Raises UnsupportedBackbone for tensors that loading would split or fuse: their deltas would have no single place.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    resident = model.state_dict()
    places: dict[str, str] = {}
    for name in stored:
        place, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, resident)
        if converter is not None:
            raise UnsupportedBackbone(
                f"{type(model).__name__} fuses {name!r} with other tensors while loading, which is not supported",
                param=name,
            )
        if place in resident:
            places[name] = place
    return places


def _check_config(checkpoint: Checkpoint) -> None:
    raw = checkpoint.config
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else quantised
        raise UnsupportedBackbone(
            f"{checkpoint.folder.name} is quantised ({method}): deltas are differences of full-precision weights, "
            "so give the unquantised model",
            param="base",
        )
    for plugin in entry_points(group=PLUGINS, name=str(raw.get("model_type"))):
        plugin.load()
    if raw.get("model_type") not in transformers.CONFIG_MAPPING:
        needs_code = " and would need code from the checkpoint, which is never run" if raw.get("auto_map") else ""
        raise UnsupportedBackbone(
            f"model_type {raw.get('model_type')!r} is not known to transformers {transformers.__version__}{needs_code}",
            param="base",
        )


def empty_model(checkpoint: Checkpoint, task: Task) -> PreTrainedModel:
    """The model that the checkpoint's config describes, on the meta device.

    Raises UnsupportedBackbone for a config that no model of this task can be built from.
    """
    try:
        config = _transformers_config(checkpoint.config)
        with torch.device("meta"):
            model: PreTrainedModel = AUTO_CLASS[task].from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a config's values provoke
        reason = str(error).partition("\n")[0]
        raise UnsupportedBackbone(
            f"{checkpoint.folder.name} cannot be built for the task {task.value!r}: {reason}", param="task"
        ) from error
    return model


def _transformers_config(config: Mapping[str, Any]) -> PretrainedConfig:
    """Through a file: only `from_pretrained` chooses between model types that share a name, as mistral and ministral.

    The checkpoint's own config.json is not it where an adapter changed the config.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(dict(config)), "utf-8")
        read: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return read


def _check_shapes(checkpoint: Checkpoint, model: PreTrainedModel, places: Mapping[str, str]) -> None:
    resident = model.state_dict()
    for name, place in places.items():
        stored, described = list(checkpoint.tensors[name].shape), list(resident[place].shape)
        if stored != described:
            raise UnsupportedBackbone(
                f"{name!r} has shape {stored} in {checkpoint.folder.name}, whose config.json describes {described}",
                param=name,
            )


def _copies(places: Mapping[str, str], groups: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Some checkpoints store a tied tensor under several of its names; the first in the model's order counts."""
    stored: dict[tuple[str, ...], list[str]] = {}
    for name, place in places.items():
        if place in groups:
            stored.setdefault(groups[place], []).append(name)
    copies: dict[str, str] = {}
    for group, names in stored.items():
        first, *others = sorted(names, key=lambda name: group.index(places[name]))
        copies |= dict.fromkeys(others, first)
    return copies


def _specs(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    places: Mapping[str, str],
    groups: Mapping[str, tuple[str, ...]],
    task: Task,
) -> Iterator[TensorSpec]:
    roles, vocabulary = dict(_roles(model)), _vocabulary_parameters(model)
    for name, place in places.items():
        parameter, *tied = groups.get(place, (place,))
        stored = checkpoint.tensors[name]
        kind, axis = roles.get(parameter, (Kind.OTHER, None))
        head = task in CLASSIFIERS and not parameter.startswith(f"{model.base_model_prefix}.")
        tokens = parameter in vocabulary
        yield TensorSpec(name, parameter, stored.shape, stored.dtype, kind, axis, tuple(tied), head, tokens)


def _roles(model: nn.Module) -> Iterator[tuple[str, tuple[Kind, int | None]]]:
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            yield full, _role(module, name, parameter.dim())


def _role(module: nn.Module, name: str, dim: int) -> tuple[Kind, int | None]:
    if dim >= 2:
        if isinstance(module, nn.Linear):
            return Kind.LINEAR, 0
        if isinstance(module, Conv1D):
            return Kind.CONV1D, 1
        if isinstance(module, nn.Embedding):
            return Kind.EMBEDDING, 0
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return Kind.CONV, 0
    if "Norm" in type(module).__name__:
        return Kind.NORM, None
    return (Kind.BIAS if name.endswith("bias") else Kind.OTHER), None


def _vocabulary_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the matrices with one row for each token: input and output embeddings, under all tied names."""
    try:
        modules = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    except NotImplementedError:  # how transformers says that a model reads no tokens
        return set()
    weights = {id(module.weight) for module in modules if isinstance(module, nn.Embedding | nn.Linear)}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in weights}


def _tied_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every name of a shared parameter -> all its names, in the model's order."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return {name: tuple(names) for names in by_identity.values() if len(names) > 1 for name in names}
