"""The state of a training on disk, from which it goes on to the same end: tensors as safetensors, the rest as JSON.

There is no random state: whatever a step draws comes from the step's number. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from patchbay.errors import InputError

FOLDER = "checkpoint"
# What is written in a checkpoint -> the option that says it.
OPTIONS = {
    **{name: f"--{name}" for name in ("size", "epochs", "rest", "seed", "channels")},
    "batch_size": "--batch-size",
    "highest_rate": "--rate",
    "window_seconds": "--window-seconds",
    "pairs": "--bipolar",
    "reference": "--average-reference",
    "line_hz": "--line-hz",
    "rejects": "--reject",
}
_NEW, _OLD = f".{FOLDER}.new", f".{FOLDER}.old"
_MODEL, _OPTIMISER, _STATE = "model.safetensors", "optimiser.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """`step`: how many are done. `options`: those it was begun with. `history`: a line for each report; `untold`:
    losses of the steps since the last of them.
    """

    step: int
    options: dict[str, Any]
    history: list[dict[str, float]]
    untold: list[float] = field(default_factory=list)


def check_out(out: Path, *, goes_on: bool) -> None:
    """Raises InputError where something is in `out` already, which is never written over: other than what was begun
    there, where `goes_on`.
    """
    begun = {FOLDER, _NEW, _OLD}
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or (there and not (goes_on and there & begun)):
        raise InputError(f"{out} is there already and not empty: take another --out, or remove it", param="out")


def save(out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: State) -> None:
    """In place of the last one, as a whole: whoever is stopped in the middle finds the last one."""
    fresh, there = out / _NEW, out / FOLDER
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, fresh / _MODEL)
    save_file(_moments(model, optimiser), fresh / _OPTIMISER)
    (fresh / _STATE).write_text(json.dumps(asdict(state)), "utf-8")
    old = out / _OLD
    if there.exists():
        there.rename(old)
    fresh.rename(there)
    shutil.rmtree(old, ignore_errors=True)


def restore(out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, options: dict[str, Any]) -> State | None:
    """Into model and optimiser; None where nothing was begun. Raises InputError where it was begun with other options,
    and for files that cannot be read.
    """
    state, there = state_of(out), _last(out)
    if state is None:
        return None
    try:
        tensors, moments = load_file(there / _MODEL), load_file(there / _OPTIMISER)
    except (OSError, SafetensorError) as error:
        raise _unreadable(there, error) from error
    _check_same(out, _flat(state.options), _flat(options))
    model.load_state_dict(tensors)
    _set_moments(model, optimiser, moments)
    return state


def _check_same(out: Path, begun: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    name = next((name for name in sorted(asked) if asked[name] != begun.get(name)), None)
    if name is not None:
        raise InputError(
            f"{out} was begun with {OPTIONS.get(name, name)} {begun.get(name)!r}, and this asks for {asked[name]!r}: "
            "take another folder, or remove its checkpoint",
            param=name,
        )


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """With what is done to recordings beside the others."""
    return {**{name: value for name, value in options.items() if name != "steps"}, **options.get("steps", {})}


def state_of(out: Path) -> State | None:
    """What was last done there; None where nothing was begun. Raises InputError where it cannot be read."""
    there = _last(out)
    if not there.exists():
        return None
    try:
        line = json.loads((there / _STATE).read_text("utf-8"))
        return State(int(line["step"]), dict(line["options"]), list(line["history"]), list(line.get("untold", [])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(there, error) from error


def _last(out: Path) -> Path:
    there = out / FOLDER
    return there if there.exists() else out / _OLD  # stopped between the two renames


def _unreadable(there: Path, error: Exception) -> InputError:
    return InputError(f"{there} cannot be read: {error}; remove it to begin anew", param="out")


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
