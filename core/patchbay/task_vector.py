"""The task vector: fine-tuned minus base, tensor by tensor in fp32, under the base's names (Ilharco et al., 2023).

Tensors are read when asked for, so a vector over two 14 GB checkpoints takes the memory of its largest tensor. Knows
nothing of pruning, encodings or files of deltas.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from patchbay.adapters import AdaptedCheckpoint, open_finetuned
from patchbay.architecture import Architecture, TensorSpec
from patchbay.backbone import labels_of
from patchbay.checkpoint import Checkpoint, same_bits
from patchbay.errors import FinetuneMismatch

Progress = Callable[[int, int, str], None]
BLOCK = 1 << 20  # entries whose difference is taken in one step
_VOLATILE = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, slots=True)
class Identity:
    """What travels with a fine-tune besides numbers: where it came from, its config, labels and tokens."""

    base: str
    base_fingerprint: str
    finetuned: str
    prefix: str = ""  # put before the base's names in the fine-tuned checkpoint (`bert.`)
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json keys that differ
    config_removed: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    tokens: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class TaskVector:
    """tau = theta_finetuned - theta_base.

    `changed` lists the float tensors whose bits differ, `added` the fine-tune's own heads, `copied` integer tensors
    with new values, `missing` the base's tensors that the fine-tune dropped. `vector[name]` is the fp32 difference.
    `appended` holds the rows that a fine-tune with a larger vocabulary has behind those of the base, in its dtype;
    differences and pairs are of the rows that both have.
    """

    specs: Mapping[str, TensorSpec]
    changed: tuple[str, ...]
    added: Mapping[str, torch.Tensor]
    copied: Mapping[str, torch.Tensor]
    missing: tuple[str, ...]
    identity: Identity
    _difference: Callable[[str], torch.Tensor]
    _pair: Callable[[str], tuple[torch.Tensor, torch.Tensor]] | None = None
    appended: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def from_models(
        cls, base: str | Path | Checkpoint, finetuned: str | Path | Checkpoint, on_progress: Progress | None = None
    ) -> TaskVector:
        """Subtracts two checkpoints, matching names through prefixes and transformers' renames.

        `finetuned` may be a PEFT adapter's folder: the difference is then the adapter's own, never rounded to the
        base's dtype. Raises FinetuneMismatch for a tensor that only one of them has (heads excepted) or whose shape
        changed (a larger vocabulary excepted), and for adapters that are not understood.
        """
        old = base if isinstance(base, Checkpoint) else Checkpoint.open(base)
        new = finetuned if isinstance(finetuned, Checkpoint) else open_finetuned(finetuned, old)
        old_arch, new_arch = Architecture.of(old), Architecture.of(new)
        _check_copies(old, old_arch)
        _check_copies(new, new_arch)
        pairs, added, missing = _match(old_arch, new_arch)
        resized = [name for name, other in pairs.items() if new.tensors[other].shape != old.tensors[name].shape]

        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            before, after = old.read(name), new.read(pairs[name])
            return before, after[: len(before)] if name in resized else after

        def difference(name: str) -> torch.Tensor:
            if isinstance(new, AdaptedCheckpoint):
                return new.difference(pairs[name])
            found = torch.empty(old.tensors[name].shape)
            if not found.dim():
                return torch.sub(*(tensor.to(torch.float32) for tensor in reversed(pair(name))))
            for rows in _blocks(found):  # both whole tensors, mapped, would be two more of the largest one
                before, after = old.read_rows(name, rows), new.read_rows(pairs[name], rows)
                torch.sub(after.to(torch.float32), before.to(torch.float32), out=found[rows])
            return found

        changed, copied = _compare(_candidates(new, pairs), pair, on_progress)
        return cls(
            specs=old_arch.specs,
            changed=changed,
            added={name: new.read(name) for name in added},
            copied={name: new.read(pairs[name]) for name in copied},
            missing=(*missing, *(n for n in (*old_arch.unused, *old_arch.copies) if n not in new.tensors)),
            identity=_identity(old, new, old_arch, new_arch, pairs),
            _difference=difference,
            _pair=pair,
            appended={name: new.read(pairs[name])[old_arch.specs[name].shape[0] :].clone() for name in resized},
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        """The fp32 difference of one tensor, shaped like the tensor; zeros where nothing changed."""
        if name in self.changed:
            return self._difference(name)
        return torch.zeros(self.specs[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.changed)

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(base, fine-tuned) as stored, or None for a vector made by arithmetic."""
        return self._pair(name) if self._pair else None

    def apply(self, name: str, base: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """round(fp32(base) + scale * tau) to the base's dtype: one rounding."""
        return (base.to(torch.float32) + scale * self[name]).to(base.dtype)

    def __add__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, lambda name: self[name] + other[name])

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, lambda name: self[name] - other[name])

    def __mul__(self, scale: float) -> TaskVector:
        return replace(self, _difference=lambda name: scale * self[name], _pair=None)

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def _combine(self, other: TaskVector, difference: Callable[[str], torch.Tensor]) -> TaskVector:
        if self.identity.base_fingerprint != other.identity.base_fingerprint:
            raise FinetuneMismatch("task vectors of different bases cannot be combined", param="base")
        changed = tuple(sorted({*self.changed, *other.changed}))
        return replace(self, changed=changed, _difference=difference, _pair=None)


def _blocks(tensor: torch.Tensor) -> list[slice]:
    """Rows of at most BLOCK entries together, or one; none of an empty tensor."""
    if not tensor.numel():
        return []
    step = max(1, BLOCK * len(tensor) // tensor.numel())
    return [slice(start, min(start + step, len(tensor))) for start in range(0, len(tensor), step)]


def _check_copies(checkpoint: Checkpoint, arch: Architecture) -> None:
    for copy, name in arch.copies.items():
        if not same_bits(checkpoint.read(copy), checkpoint.read(name)):
            raise FinetuneMismatch(
                f"the config of {checkpoint.folder.name} ties {copy!r} to {name!r}, but they are stored with different "
                "values: set tie_word_embeddings to false",
                param=copy,
            )


def _core_name(arch: Architecture, spec: TensorSpec) -> tuple[bool, str]:
    """(belongs to the encoder, name inside it): equal for `embeddings.x` of a plain encoder and `bert.embeddings.x`."""
    if arch.is_base_model:
        return True, spec.parameter
    inside = spec.parameter.removeprefix(f"{arch.prefix}.")
    return inside != spec.parameter, inside


def _match(old: Architecture, new: Architecture) -> tuple[dict[str, str], list[str], tuple[str, ...]]:
    """Base name -> fine-tuned name, then the added heads (by fine-tuned name) and the missing (by base name)."""
    same_labels = labels_of(old.config.to_dict()) == labels_of(new.config.to_dict())
    by_core = {_core_name(new, spec): spec for spec in new.specs.values()}
    pairs, missing = {}, []
    for name, spec in old.specs.items():
        found = by_core.get(_core_name(old, spec))
        if found is None or (found.is_head and not (same_labels and found.shape == spec.shape)):
            _check_droppable(name, spec)
            missing.append(name)
            continue
        if found.shape != spec.shape:
            _check_resizable(name, spec, found)
        pairs[name] = found.name
    matched = set(pairs.values())
    added = [spec for spec in new.specs.values() if spec.name not in matched]
    for spec in added:
        if not spec.is_head:
            raise FinetuneMismatch(
                f"{spec.name!r} is only in the fine-tuned model and is no head: is this the right base?",
                param=spec.name,
            )
    return pairs, [spec.name for spec in added], tuple(missing)


def _check_droppable(name: str, spec: TensorSpec) -> None:
    if not spec.is_head and ".pooler." not in f".{spec.parameter}":
        raise FinetuneMismatch(f"the fine-tuned model lacks {name!r}: is this the right base?", param=name)


def _check_resizable(name: str, spec: TensorSpec, found: TensorSpec) -> None:
    shapes = f"{name!r} has shape {list(found.shape)} in the fine-tuned model and {list(spec.shape)} in the base"
    if not (spec.is_vocabulary and found.is_vocabulary and found.shape[1:] == spec.shape[1:]):
        raise FinetuneMismatch(f"{shapes}; only a vocabulary can be resized", param=name)
    if found.shape[0] < spec.shape[0]:
        raise FinetuneMismatch(
            f"{shapes}; a vocabulary can only grow: resize the fine-tuned model's to {spec.shape[0]} tokens", param=name
        )


def _candidates(new: Checkpoint, pairs: Mapping[str, str]) -> list[str]:
    """Base names of the tensors that may differ: an adapter says which, so that the others need not be read."""
    if isinstance(new, AdaptedCheckpoint):
        return [name for name, other in pairs.items() if other in new.adaptations]
    return list(pairs)


def _compare(
    names: list[str],
    pair: Callable[[str], tuple[torch.Tensor, torch.Tensor]],
    on_progress: Progress | None,
) -> tuple[tuple[str, ...], list[str]]:
    """Names whose bits differ: (float tensors, integer tensors)."""
    changed: list[str] = []
    copied: list[str] = []
    for done, name in enumerate(names):
        if on_progress:
            on_progress(done, len(names), name)
        before, after = pair(name)
        if same_bits(before, after):
            continue
        (changed if before.is_floating_point() else copied).append(name)
    return tuple(changed), copied


def _identity(
    old: Checkpoint, new: Checkpoint, old_arch: Architecture, new_arch: Architecture, pairs: Mapping[str, str]
) -> Identity:
    config = {k: v for k, v in new.config.items() if k not in _VOLATILE and (k not in old.config or old.config[k] != v)}
    removed = tuple(k for k in old.config if k not in new.config and k not in _VOLATILE)
    prefixed = [(o, n) for o, n in pairs.items() if n != o and n.endswith(f".{o}")]
    prefix = prefixed[0][1].removesuffix(prefixed[0][0]) if len(prefixed) == len(pairs) and pairs else ""
    has_head = any(spec.is_head for spec in new_arch.specs.values())
    return Identity(
        base=old.folder.name,
        base_fingerprint=old.fingerprint,
        finetuned=new.folder.name,
        prefix=prefix,
        config=config,
        config_removed=removed,
        labels=labels_of(new_arch.config.to_dict()) if has_head else None,
        tokens=_new_tokens(old.folder, new.folder),
    )


def _new_tokens(old: Path, new: Path) -> tuple[Mapping[str, Any], ...]:
    known = {token["content"] for token in _added_tokens(old)}
    return tuple(token for token in _added_tokens(new) if token["content"] not in known)


def _added_tokens(folder: Path) -> list[Mapping[str, Any]]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    entries = json.loads(file.read_text("utf-8")).get("added_tokens", [])
    return [{"id": t["id"], "content": t["content"], "special": bool(t.get("special"))} for t in entries]
