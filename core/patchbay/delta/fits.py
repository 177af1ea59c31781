"""Whether a manifest was made for a base: fingerprint, then every name, shape and dtype. Decodes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from patchbay.architecture import TensorSpec
from patchbay.delta.entries import DTYPES, Entry, numel
from patchbay.delta.manifest import Manifest
from patchbay.errors import DeltaTooLarge, UnknownTensor, WrongBase, WrongShape

MAX_ADDED_BYTES = 1 << 26


def check_fits(manifest: Manifest, specs: Mapping[str, TensorSpec], fingerprint: str) -> None:
    """The delta was made for this base: fingerprint, then every name, shape, dtype kind and number of neurons.

    Raises WrongBase, UnknownTensor, WrongShape or DeltaTooLarge, naming the first offender in order of names.
    """
    if manifest.base.fingerprint != fingerprint:
        raise WrongBase(
            f"the delta was made for base {manifest.base.name!r} ({manifest.base.fingerprint[:19]}...), "
            f"this base is {fingerprint[:19]}...: use it with its own base, or compress the fine-tune against this one",
            param="base.fingerprint",
        )
    for name, entry in manifest.tensors.items():
        if entry.kind != "added":
            _check_tensor(name, entry, specs.get(name))
    _check_added(manifest, specs)


def _check_tensor(name: str, entry: Entry, spec: TensorSpec | None) -> None:
    if spec is None:
        raise UnknownTensor(f"the base has no tensor {name!r}", param=name)
    if spec.shape != entry.shape:
        raise WrongShape(f"{name!r} has shape {list(entry.shape)}, the base's has {list(spec.shape)}", param=name)
    is_float = DTYPES[entry.dtype].is_floating_point
    if is_float == (entry.kind == "copied") or is_float != spec.dtype.startswith(("F", "BF")):
        raise WrongShape(
            f"{name!r} is of kind {entry.kind} and dtype {entry.dtype}, the base's is {spec.dtype}", param=name
        )
    neurons = 0 if spec.neuron_axis is None else spec.shape[spec.neuron_axis]
    if entry.neurons not in (0, neurons):
        raise WrongShape(f"{name!r} has statistics of {entry.neurons} neurons, the base's has {neurons}", param=name)
    if entry.appended and not spec.is_vocabulary:
        raise WrongShape(f"{name!r} has rows appended, but it is no vocabulary of the base", param=name)


def _check_added(manifest: Manifest, specs: Mapping[str, TensorSpec]) -> None:
    """Only added tensors and appended rows are not bounded by the base's shapes."""
    size = sum(_added_bytes(entry) for entry in manifest.tensors.values())
    if size > MAX_ADDED_BYTES:
        raise DeltaTooLarge(
            f"added tensors and rows take {size} bytes; at most {MAX_ADDED_BYTES} are accepted", param="tensors"
        )
    for name, entry in manifest.tensors.items():
        if entry.kind == "added" and name in specs and not specs[name].is_head:
            raise WrongShape(f"{name!r} is a tensor of the base and no head: it cannot be added", param=name)


def _added_bytes(entry: Entry) -> int:
    rows = numel(entry.shape) if entry.kind == "added" else entry.appended * numel(entry.shape[1:])
    return rows * DTYPES[entry.dtype].itemsize
