"""mergekit as a command of an environment of its own, on plain encoders in safetensors, on the CPU.

Of its commands the one for files of tensors, whose methods are the same: `mergekit-yaml` 0.1.5 fails on a plain BERT,
at a buffer that its list of that architecture's tensors gives two names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file

from benchmarks.merges import Member
from benchmarks.other_tools import Made, Missing, Params, Refused
from patchbay.checkpoint import Checkpoint
from patchbay.task_vector import TaskVector

COMMAND = "mergekit-pytorch"
HOW = (
    "mergekit's rows are left out: {reason}. For them `pip install mergekit==0.1.5` into an environment of its own and "
    f"name its command: --mergekit ENV/bin/{COMMAND}"
)
# mergekit's own defaults, but for densities: at its default, 1, these three drop nothing. They get Patchbay's.
METHODS: Mapping[str, Params] = {
    "linear": {"normalize": True},
    "task_arithmetic": {"normalize": False, "lambda": 1.0},
    "ties": {"density": 1.0, "normalize": True, "lambda": 1.0},
    "dare_linear": {"density": 0.5, "rescale": True, "normalize": False, "lambda": 1.0},
    "dare_ties": {"density": 0.5, "rescale": True, "normalize": False, "lambda": 1.0},
    "breadcrumbs": {"density": 0.99, "gamma": 0.01, "normalize": False, "lambda": 1.0},
    "della": {"density": 0.7, "epsilon": 0.15, "rescale": True, "normalize": True, "lambda": 1.0},
    "sce": {"select_topk": 1.0},
    "model_stock": {"filter_wise": False},
}
WITHOUT_WEIGHTS = ("sce", "model_stock")
WITHOUT_BASE = ("linear",)  # there the base would be one more model to take the mean of
SEED = 0
BASE = "base.safetensors"
VERSION = "import importlib.metadata, mergekit; print(importlib.metadata.version('mergekit'))"


@dataclass(frozen=True, slots=True)
class Mergekit:
    """`merge` takes the whole command: its start, reading and writing."""

    command: Path
    version: str
    name: ClassVar[str] = "mergekit"
    source: ClassVar[str] = "mergekit"
    methods: ClassVar[Mapping[str, Params]] = METHODS

    @classmethod
    def find(cls, command: Path | None = None) -> Self:
        """The one that `command` belongs to, or else the one on the path. Raises Missing."""
        given = shutil.which(command or COMMAND)
        place = given and shutil.which(COMMAND, path=Path(given).resolve().parent)  # given may be another one of its
        if not place:
            raise Missing(HOW.format(reason=f"no command {command or COMMAND} is found"))
        asked = _run([_python(Path(place)), "-c", VERSION])
        if asked.returncode:
            raise Missing(HOW.format(reason=f"{place} does not run, {_last_line(asked.stderr)}"))
        return cls(Path(place), asked.stdout.strip())

    def merge(self, members: tuple[Member, ...], method: str) -> Made:
        base = Checkpoint.open(members[0].case.base)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            models = _write_encoders(folder, base, members)
            recipe, merged = folder / "merge.yaml", folder / "merged"
            recipe.write_text(json.dumps(_document(method, folder / BASE, models)), "utf-8")
            started = time.perf_counter()
            done = _run([str(self.command), str(recipe), str(merged), "--quiet", "--random-seed", str(SEED)])
            seconds = time.perf_counter() - started
            if done.returncode:
                raise Refused(_last_line(done.stderr))
            tensors = {name: each for file in merged.glob("*.safetensors") for name, each in load_file(file).items()}
        differences = {name: tensor.float() - base.read(name).float() for name, tensor in tensors.items()}
        return Made([differences], "model", seconds, sum(tensor.nbytes for tensor in tensors.values()))


def _document(method: str, base: Path, models: Sequence[Path]) -> Mapping[str, Any]:
    """mergekit's YAML, of which JSON is a part."""
    weight = {} if method in WITHOUT_WEIGHTS else {"parameters": {"weight": 1.0}}
    return {
        "merge_method": method,
        **({} if method in WITHOUT_BASE else {"base_model": str(base)}),
        "models": [{"model": str(model), **weight} for model in models],
        "parameters": METHODS[method],
        "dtype": "float32",
    }


def _write_encoders(folder: Path, base: Checkpoint, members: Sequence[Member]) -> list[Path]:
    """The base, and each fine-tune's encoder under the base's names: without a head, floats alone."""
    models: list[Path] = []
    for number, member in enumerate(members):
        vector = TaskVector.from_models(base, member.case.finetuned)
        names = [name for name in vector.specs if base.read(name).is_floating_point()]
        models.append(folder / f"model{number}.safetensors")
        save_file({name: _tuned(vector, base, name) for name in names}, models[-1])
        if not number:
            save_file({name: base.read(name) for name in names}, folder / BASE)
    return models


def _tuned(vector: TaskVector, base: Checkpoint, name: str) -> torch.Tensor:
    """As the fine-tune stores it: base + difference would be rounded."""
    pair = None if name in vector.missing else vector.pair(name)
    return base.read(name) if pair is None else pair[1]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One thread, as the benchmark's workers have; in its own environment, never on the network, and with one order of
    sets: what is drawn for a tensor depends on which come before it."""
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _python(command: Path) -> str:
    """The interpreter beside a command that pip has installed."""
    return shutil.which("python", path=command.parent) or shutil.which("python3", path=command.parent) or "python"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "without a word")
