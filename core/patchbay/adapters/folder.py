"""A PEFT adapter's folder, checked against the base it is opened for: which tensor of the model each of its own means.

Nothing in the folder is trusted: sizes come from headers, every tensor must have a place, and no pickle is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from patchbay.adapters.adapted import Adaptation, AdaptedCheckpoint
from patchbay.adapters.config import AdapterConfig, parse_config
from patchbay.adapters.names import Target, read_targets
from patchbay.adapters.update import UP_BIAS, VALUE, check_parts, rank_of
from patchbay.architecture import (
    AUTO_CLASS,
    CLASSIFIERS,
    Architecture,
    Task,
    TensorSpec,
    detect_task,
    empty_model,
    resident_names,
)
from patchbay.checkpoint import (
    Checkpoint,
    StoredTensor,
    read_json_object,
    refuse_pickles,
    resolve_folder,
    same_bits,
    scan_tensors,
)
from patchbay.errors import FinetuneMismatch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_TASKS: Mapping[str, Task] = {"SEQ_CLS": Task.TEXT_CLASSIFICATION}
_UNSERVED = ("TOKEN_CLS", "QUESTION_ANS")


def open_finetuned(source: str | Path, base: str | Path | Checkpoint) -> Checkpoint:
    """A whole checkpoint, or the one that a PEFT adapter's folder makes of `base`.

    Raises UnsupportedBackbone as `Checkpoint.open` does, FinetuneMismatch for an adapter that is not understood or
    does not fit the base.
    """
    folder = resolve_folder(source)
    if not (folder / CONFIG).is_file():
        return Checkpoint.open(folder)
    config = parse_config(read_json_object(folder / CONFIG))
    old = base if isinstance(base, Checkpoint) else Checkpoint.open(base)
    return _adapt(old, _open_weights(folder), config)


def _open_weights(folder: Path) -> Checkpoint:
    if (folder / "model.safetensors").is_file():
        raise FinetuneMismatch(f"{folder} holds both a whole model and an adapter: move one of them away", param=CONFIG)
    file = folder / WEIGHTS
    if not file.is_file():
        refuse_pickles(folder)
        raise FinetuneMismatch(f"{folder} has no {WEIGHTS}", param=WEIGHTS)
    return Checkpoint(folder, {}, {stored.name: stored for stored in scan_tensors(file)})


def _adapt(base: Checkpoint, weights: Checkpoint, config: AdapterConfig) -> AdaptedCheckpoint:
    arch = Architecture.of(base)
    task = _task(config, arch)
    changes = _new_class(arch, task)
    model = empty_model(Checkpoint(weights.folder, {**base.config, **changes}, {}), task)
    targets = read_targets(weights, model)
    changes |= _new_labels(weights, model, targets, arch, task)
    bare = _without_adaptations(base, weights, {**base.config, **changes}, _origins(base, arch, model, bool(changes)))
    bare = _with_heads(bare, model, targets, task)
    owners = {p: spec for spec in Architecture.of(bare, task).specs.values() for p in (spec.parameter, *spec.tied)}
    if changes:
        _check_complete(weights, model, owners)
    return _with_adaptations(bare, targets, owners, config)


def _task(config: AdapterConfig, arch: Architecture) -> Task:
    """The base's, unless the adapter was trained on the base with a classification head."""
    if config.task_type in _UNSERVED:
        raise FinetuneMismatch(
            f"adapter_config.json has task_type {config.task_type!r}, whose heads are not supported", param="task_type"
        )
    named = str((config.auto_mapping or {}).get("base_model_class", ""))
    task = _TASKS.get(config.task_type or "") or (detect_task({"architectures": [named]}) if named else arch.task)
    return task if task in CLASSIFIERS and arch.task not in CLASSIFIERS else arch.task


def _new_class(arch: Architecture, task: Task) -> dict[str, Any]:
    """What config.json says of the model that the adapter was trained on, where that is not the base's class."""
    if task is arch.task:
        return {}
    try:
        return {"architectures": [AUTO_CLASS[task]._model_mapping[type(arch.config)].__name__]}
    except KeyError as error:
        raise FinetuneMismatch(
            f"the adapter is for {task.value}, which {arch.config.model_type} models cannot do", param="task_type"
        ) from error


def _new_labels(
    weights: Checkpoint, model: PreTrainedModel, targets: Mapping[str, Target], arch: Architecture, task: Task
) -> dict[str, Any]:
    """An adapter's folder does not name its classes; transformers' own default names, as many as its head has."""
    heads = [name for name, p in model.named_parameters() if p.dim() > 1 and _is_head(name, model, task)]
    target = targets.get(heads[-1]) if heads else None
    if target is None or VALUE not in target.parts:
        return {}
    number = weights.tensors[target.parts[VALUE]].shape[0]
    if task is arch.task and number == model.config.num_labels:
        return {}
    labels = {str(index): f"LABEL_{index}" for index in range(number)}
    return {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}


def _is_head(place: str, model: PreTrainedModel, task: Task) -> bool:
    return task in CLASSIFIERS and not place.startswith(f"{model.base_model_prefix}.")


def _origins(base: Checkpoint, arch: Architecture, model: PreTrainedModel, changed: bool) -> dict[str, str]:
    """Name in the fine-tuned model -> name in the base. A base's own head gives way to one with other classes."""
    if not changed:
        return {name: arch.copies.get(name, name) for name in base.tensors}
    prefix = f"{model.base_model_prefix}."
    plain = arch.is_base_model and not any(name.startswith(prefix) for name in arch.specs)
    names = {f"{prefix}{name}" if plain else name: name for name, spec in arch.specs.items() if not spec.is_head}
    return {name: names[name] for name in resident_names(model, list(names))}


def _without_adaptations(
    base: Checkpoint, weights: Checkpoint, config: Mapping[str, Any], origins: Mapping[str, str]
) -> AdaptedCheckpoint:
    tensors = {name: replace(base.tensors[origin], name=name) for name, origin in origins.items()}
    return AdaptedCheckpoint(weights.folder, config, tensors, base=base, weights=weights, origins=origins)


def _with_heads(
    bare: AdaptedCheckpoint, model: PreTrainedModel, targets: Mapping[str, Target], task: Task
) -> AdaptedCheckpoint:
    """The adapter's own heads have the model's names."""
    known = set(resident_names(model, list(bare.origins)).values())
    heads: dict[str, StoredTensor] = {}
    for place, target in targets.items():
        if place not in known and _is_head(place, model, task) and VALUE in target.parts:
            heads[place] = replace(bare.weights.tensors[target.parts[VALUE]], name=place)
    return replace(bare, tensors={**bare.tensors, **heads})


def _check_complete(weights: Checkpoint, model: PreTrainedModel, owners: Mapping[str, TensorSpec]) -> None:
    """What neither has was random when the adapter was trained, and is lost."""
    for place, _ in model.named_parameters():
        if place not in owners:
            raise FinetuneMismatch(
                f"neither the base nor {weights.folder.name} has {place!r}, which the adapter was trained with: "
                "train it again with that module in modules_to_save, or give the whole model",
                param=place,
            )


def _with_adaptations(
    bare: AdaptedCheckpoint, targets: Mapping[str, Target], owners: Mapping[str, TensorSpec], config: AdapterConfig
) -> AdaptedCheckpoint:
    by_name = {target.name: target for target in targets.values()}
    adaptations: dict[str, Adaptation] = {}
    for place, target in targets.items():
        spec = owners.get(place)
        if spec is None:
            key = next(iter(target.parts.values()))
            raise FinetuneMismatch(f"the adapter's {key!r} belongs to no tensor of the base", param=key)
        if spec.tied:
            _check_tied(bare.weights, spec, targets, config)
        adaptations[spec.name] = _adaptation(bare.weights, spec, target, by_name, config)
    shapes = {name: a.spec.shape for name, a in adaptations.items() if a.spec.shape != bare.tensors[name].shape}
    resized = {name: replace(bare.tensors[name], shape=shape) for name, shape in shapes.items()}
    vocabulary = {"vocab_size": max(shape[0] for shape in shapes.values())} if shapes else {}
    return replace(
        bare,
        config={**bare.config, **vocabulary},
        tensors=dict(sorted({**bare.tensors, **resized}.items())),
        adaptations=adaptations,
    )


def _adaptation(
    weights: Checkpoint, spec: TensorSpec, target: Target, by_name: Mapping[str, Target], config: AdapterConfig
) -> Adaptation:
    stored = {part: weights.tensors[key] for part, key in target.parts.items()}
    for part, tensor in stored.items():
        if (tensor.dtype in _FLOATS) != (part != VALUE or spec.dtype in _FLOATS):
            raise FinetuneMismatch(f"the adapter's {tensor.name!r} is stored as {tensor.dtype}", param=tensor.name)
    shapes = {part: tensor.shape for part, tensor in stored.items()}
    whole = shapes.get(VALUE, spec.shape)
    if whole != spec.shape and not (spec.is_vocabulary and whole[1:] == spec.shape[1:]):
        name = target.parts[VALUE]
        raise FinetuneMismatch(
            f"the adapter's {name!r} has shape {list(whole)}, {spec.name!r} {list(spec.shape)}", param=name
        )
    check_parts(spec.name, spec.kind, whole, shapes)
    return Adaptation(replace(spec, shape=whole), target.parts, _scaling(weights, target, by_name, config))


def _scaling(weights: Checkpoint, target: Target, by_name: Mapping[str, Target], config: AdapterConfig) -> float:
    matrix = by_name.get(f"{target.module}.weight")
    rank = rank_of({part: weights.tensors[key].shape for part, key in matrix.parts.items()}) if matrix else None
    if rank is None and UP_BIAS in target.parts:
        raise FinetuneMismatch(f"the adapter of {target.module!r} is incomplete", param=target.parts[UP_BIAS])
    return 1.0 if rank is None else config.scaling(target.module, rank)


def _check_tied(weights: Checkpoint, spec: TensorSpec, targets: Mapping[str, Target], config: AdapterConfig) -> None:
    """One stored tensor is all of its tied uses, so an adapter must do the same to each of them.

    PEFT writes a whole tensor into the memory that all uses share, unless `modules_to_save` made a copy of one.
    """
    found = [targets[place] for place in (spec.parameter, *spec.tied) if place in targets]
    copied = [target for target in found if target.module.rpartition(".")[2] in (config.modules_to_save or ())]
    whole = [weights.read(target.parts[VALUE]) for target in found if set(target.parts) == {VALUE}]
    everywhere = len(found) == 1 + len(spec.tied) or not copied
    if len(whole) < len(found) or not everywhere or not all(same_bits(whole[0], other) for other in whole):
        raise FinetuneMismatch(
            f"the adapter changes {found[0].name!r}, which the base ties to {', '.join(spec.tied)}, and not "
            "all of them alike: save the base with tie_word_embeddings false",
            param=found[0].name,
        )
