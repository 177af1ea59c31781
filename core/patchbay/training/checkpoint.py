"""The state of a training on disk, from which it goes on to the same end: tensors as safetensors, the rest as JSON.

There is no random state: whatever a step draws comes from the step's number. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from patchbay.errors import InputError

FOLDER = "checkpoint"
_MODEL, _OPTIMISER, _STATE = "model.safetensors", "optimiser.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """`step`: how many are done. `options`: those it was begun with. `history`: a line for each report."""

    step: int
    options: dict[str, Any]
    history: list[dict[str, float]]


def save(out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: State) -> None:
    """In place of the last one, as a whole: whoever is stopped in the middle finds the last one."""
    fresh, there = out / f".{FOLDER}.new", out / FOLDER
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, fresh / _MODEL)
    save_file(_moments(model, optimiser), fresh / _OPTIMISER)
    line = {"step": state.step, "options": state.options, "history": state.history}
    (fresh / _STATE).write_text(json.dumps(line), "utf-8")
    old = out / f".{FOLDER}.old"
    if there.exists():
        there.rename(old)
    fresh.rename(there)
    shutil.rmtree(old, ignore_errors=True)


def restore(out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, options: dict[str, Any]) -> State | None:
    """Into model and optimiser; None where nothing was begun. Raises InputError where it was begun with other options,
    and for files that cannot be read.
    """
    there = out / FOLDER
    if not there.exists():
        there = out / f".{FOLDER}.old"  # stopped between the two renames
    if not there.exists():
        return None
    try:
        line = json.loads((there / _STATE).read_text("utf-8"))
        state = State(int(line["step"]), dict(line["options"]), list(line["history"]))
        tensors, moments = load_file(there / _MODEL), load_file(there / _OPTIMISER)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{there} cannot be read: {error}; remove it to begin anew", param="out") from error
    other = sorted(name for name in options if options[name] != state.options.get(name))
    if other:
        name = other[0]
        raise InputError(
            f"{out} was begun with {name} {state.options.get(name)!r}, and this asks for {options[name]!r}: take "
            "another folder, or remove its checkpoint",
            param=name,
        )
    model.load_state_dict(tensors)
    _set_moments(model, optimiser, moments)
    return state


def _moments(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}:{key}": value.contiguous()
        for parameter, kept in optimiser.state.items()
        for key, value in kept.items()
    }


def _set_moments(model: nn.Module, optimiser: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in moments.items():
        place, _, key = name.rpartition(":")
        parameter = parameters[place]
        optimiser.state[parameter][key] = value if key == "step" else value.to(parameter.device)
