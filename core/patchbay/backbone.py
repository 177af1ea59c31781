"""The resident model: loaded once, read by every request, never changed by arithmetic.

Knows nothing of deltas, merges or requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from patchbay.architecture import AUTO_CLASS, CLASSIFIERS, Architecture, Task, TensorSpec
from patchbay.checkpoint import Checkpoint, byte_pieces
from patchbay.errors import BackboneError, UnsupportedBackbone

DTYPES: Mapping[str, torch.dtype | str] = {"auto": "auto", "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, eq=False)
class Backbone:
    """One base model on one device. `resident_digest` is what `verify` must find again at any later time."""

    name: str
    folder: Path
    architecture: Architecture
    fingerprint: str
    model: PreTrainedModel
    device: torch.device
    resident_digest: str
    _tensors: Mapping[str, torch.Tensor] = field(repr=False)

    @classmethod
    def load(
        cls, source: str | Path, *, task: Task | str | None = None, dtype: str = "auto", device: str = "auto"
    ) -> Backbone:
        """Loads a Hugging Face folder or hub id. `dtype`: `auto` (as stored), `bf16` or `fp32`; `device`: `auto`,
        `cpu`, `cuda`.

        Raises UnsupportedBackbone for anything that cannot be served truthfully: quantised, pickled, remote code, a
        checkpoint that lacks weights the task needs.
        """
        checkpoint = Checkpoint.open(source)
        architecture = Architecture.of(checkpoint, parse_task(task))
        _check_labels(checkpoint, architecture)
        model = _load_model(checkpoint, architecture, dtype)
        where = _device(device)
        model = model.to(where).eval().requires_grad_(False)  # type: ignore[arg-type]
        tensors = model.state_dict()
        name = checkpoint.folder.name if Path(source).expanduser().is_dir() else str(source)
        return cls(
            name=name,
            folder=checkpoint.folder,
            architecture=architecture,
            fingerprint=checkpoint.fingerprint,
            model=model,
            device=where,
            resident_digest=_digest(tensors),
            _tensors=tensors,
        )

    @property
    def task(self) -> Task:
        return self.architecture.task

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every stored tensor that the model uses, by its name in the checkpoint."""
        return self.architecture.specs

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes of the base's own classification head, or None where it has no such head."""
        if self.task not in CLASSIFIERS:
            return None
        return labels_of(self.architecture.config.to_dict())

    def tensor(self, name: str) -> torch.Tensor:
        """The resident tensor behind a checkpoint name: the model's own memory, not a copy."""
        return self._tensors[self.specs[name].parameter]

    def stored(self, name: str) -> torch.Tensor:
        """The tensor as the checkpoint stores it, from disk: the bits that a lossless delta was made against, whatever
        dtype is resident. Raises BackboneError where the folder holds another model by now.
        """
        return self._checkpoint.read(name)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        checkpoint = Checkpoint.open(self.folder)
        if checkpoint.fingerprint != self.fingerprint:
            raise BackboneError(f"{self.folder} has changed since it was loaded: restart, or restore it", param="base")
        return checkpoint

    def compute_digest(self) -> str:
        """sha256 over all resident weights as they are now."""
        return _digest(self._tensors)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """What the digest is taken over, in order: a megabyte each at the most, read when it is asked for."""
        return _pieces(self._tensors)

    @property
    def num_bytes(self) -> int:
        """Resident bytes; tied tensors count once."""
        unique = {t.data_ptr(): t.numel() * t.element_size() for t in self._tensors.values()}
        return sum(unique.values())

    @cached_property
    def max_positions(self) -> int | None:
        """How many tokens have a position; None where positions have no end (T5) or there are no tokens.

        RoBERTa and its kin count theirs from behind the padding token's.
        """
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                offset = 0 if module.padding_idx is None else module.padding_idx + 1
                return module.num_embeddings - offset
        limit: int | None = getattr(self.architecture.config, "max_position_embeddings", None)
        return limit

    @property
    def num_parameters(self) -> int:
        return sum(spec.numel for spec in self.specs.values())


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`id2label` in order of the ids, or None where the config has none."""
    id2label = config.get("id2label")
    if not id2label:
        return None
    return tuple(str(id2label[key]) for key in sorted(id2label, key=int))


def parse_task(task: Task | str | None) -> Task | None:
    if task is None or isinstance(task, Task):
        return task
    try:
        return Task(task)
    except ValueError as error:
        raise UnsupportedBackbone(f"unknown task {task!r}; known: {', '.join(Task)}", param="task") from error


def _load_model(checkpoint: Checkpoint, architecture: Architecture, dtype: str) -> PreTrainedModel:
    if dtype not in DTYPES:
        raise UnsupportedBackbone(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}", param="dtype")
    model, info = AUTO_CLASS[architecture.task].from_pretrained(
        checkpoint.folder,
        config=architecture.config,
        dtype=DTYPES[dtype],
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"])
    if architecture.task is Task.EMBEDDING and missing and all(name.startswith("pooler.") for name in missing):
        # An encoder taken out of a masked-LM checkpoint has no pooler: without it rather than with a random one.
        model.pooler, missing = None, []
    if missing:
        raise UnsupportedBackbone(
            f"{checkpoint.folder.name} has no weights for {missing[0]!r} ({len(missing)} missing): "
            f"it was not saved for the task {architecture.task.value!r}; choose another with --task",
            param="task",
        )
    _check_one_tower(model, checkpoint, architecture)
    _check_tied(model, architecture)
    loaded: PreTrainedModel = model
    return loaded


def _check_labels(checkpoint: Checkpoint, architecture: Architecture) -> None:
    labels = labels_of(architecture.config.to_dict()) or ()
    if architecture.task in CLASSIFIERS and len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UnsupportedBackbone(
            f"{checkpoint.folder.name} names two classes {twice!r}: make the values of id2label distinct", param="base"
        )


def _check_one_tower(model: PreTrainedModel, checkpoint: Checkpoint, architecture: Architecture) -> None:
    """An embedding is one forward of one encoder; models that want two inputs at once cannot give one for either."""
    two_towers = hasattr(model, "get_text_features") and hasattr(model, "get_image_features")
    if architecture.task is Task.EMBEDDING and (two_towers or architecture.config.is_encoder_decoder):
        raise UnsupportedBackbone(
            f"{checkpoint.folder.name} is a {type(model).__name__}, which has two towers: save one of them alone "
            "(for CLIP as CLIPVisionModel or CLIPTextModel) and serve that",
            param="base",
        )


def _check_tied(model: PreTrainedModel, architecture: Architecture) -> None:
    """transformers unties tensors whose stored copies differ; one spec cannot stand for both then."""
    tensors = model.state_dict()
    for spec in architecture.specs.values():
        for name in spec.tied:
            if tensors[name].data_ptr() != tensors[spec.parameter].data_ptr():
                raise UnsupportedBackbone(
                    f"the config ties {name!r} to {spec.parameter!r}, but they are stored with different values: "
                    "set tie_word_embeddings to false",
                    param=name,
                )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedBackbone("no CUDA device is available here; use --device cpu", param="device")
    if name not in ("cpu", "cuda"):
        raise UnsupportedBackbone(f"unknown device {name!r}; known: auto, cpu, cuda", param="device")
    return torch.device(name)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(tensors):
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode()
        yield from byte_pieces(tensor)
