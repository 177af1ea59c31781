"""Names in a PEFT adapter's file -> tensors of the model. Every one must have a place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from patchbay.adapters.update import MAGNITUDE, PARTS, UP_BIAS, VALUE, VECTOR
from patchbay.architecture import resident_names
from patchbay.checkpoint import Checkpoint
from patchbay.errors import FinetuneMismatch

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the model as the adapter names it: `parts` -> their names in the adapter's file."""

    name: str
    parts: dict[str, str]

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


def read_targets(weights: Checkpoint, model: PreTrainedModel) -> dict[str, Target]:
    """Name of a parameter in the model -> what the adapter has for it. Raises FinetuneMismatch for what has none."""
    named: dict[str, Target] = {}
    for name, part, key in _split(weights):
        target = named.setdefault(name, Target(name, {}))
        if part in target.parts:
            raise FinetuneMismatch(f"the adapter holds {name!r} twice: {target.parts[part]!r}, {key!r}", param=key)
        target.parts[part] = key
    for name, key in _scaled_biases(weights, model, named):
        named.setdefault(name, Target(name, {})).parts[VECTOR] = key
    places = resident_names(model, list(named))
    found: dict[str, Target] = {}
    for name, target in named.items():
        place = places.get(name)
        if place is None or place in found:
            key = next(iter(target.parts.values()))
            raise FinetuneMismatch(
                f"the adapter's {key!r} belongs to no tensor of the base: is this the right base?", param=key
            )
        found[place] = target
    return found


def _split(weights: Checkpoint) -> Iterator[tuple[str, str, str]]:
    """(tensor that is adapted, part, name in the adapter's file)."""
    for key in weights.tensors:
        # PEFT saves some modules three times: as they were, as they are, and under their plain name.
        if ".original_module." in key or key.replace(".modules_to_save.", ".", 1) in weights.tensors.keys() - {key}:
            continue
        name = key.removeprefix(_PREFIX).replace(f".{MAGNITUDE}.weight", f".{MAGNITUDE}")
        part = next((part for part in PARTS if name.endswith(f".{part}")), VALUE)
        if part == VALUE:
            yield name.replace(".base_layer.", "."), VALUE, key
        else:
            yield f"{name.removesuffix(f'.{part}')}.{'bias' if part == UP_BIAS else 'weight'}", part, key


def _scaled_biases(weights: Checkpoint, model: PreTrainedModel, named: Mapping[str, Target]) -> list[tuple[str, str]]:
    """(IA)^3 on outputs scales the module's bias too, where it has one: (bias, the vector's name in the file)."""
    keys = {f"{t.module}.bias": t.parts[VECTOR] for t in named.values() if VECTOR in t.parts}
    outputs = {name: key for name, key in keys.items() if weights.tensors[key].shape[1:] == (1,)}
    return [(name, outputs[name]) for name in resident_names(model, list(outputs))]
