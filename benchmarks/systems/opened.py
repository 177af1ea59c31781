"""Every way to serve that there is, by name, each with weights of its own. Knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.systems.adapters import Merged, Mixed
from benchmarks.systems.base import System, Terms
from benchmarks.systems.copies import BaseOnly, Replicas, Swap
from benchmarks.systems.manager import Manager
from benchmarks.systems.ours import Baseline, Ours
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.recipes import Path as How
from patchbay.execute.wrap import wrap


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be served: `load` gives the base anew; `variants` are the recipes over `deltas` that are asked for.
    `scratch` is a folder for checkpoints.
    """

    load: Callable[[], Backbone]
    deltas: Mapping[str, Delta]
    variants: Sequence[Terms]
    scratch: Path


Open = Callable[[str, Setting], System]


def _ours(path: How | None) -> Open:
    return lambda name, setting: Ours(name, setting.load(), setting.deltas, path, prefixes=False)


def _wrapped(name: str, setting: Setting) -> System:
    backbone = setting.load()
    wrap(backbone)
    return BaseOnly(name, backbone.model)


SYSTEMS: Mapping[str, Open] = {
    "base": lambda name, setting: Baseline(name, setting.load(), {}, None, prefixes=False),
    "automatic": _ours(None),
    "decoupled": _ours(How.DECOUPLED),
    "patched": _ours(How.PATCHED),
    "replicas": lambda name, setting: Replicas(setting.load(), setting.deltas, setting.variants),
    "swap": lambda name, setting: Swap(setting.load(), setting.deltas, setting.variants, setting.scratch),
    "peft-merge": lambda name, setting: Merged(setting.load().model, len(setting.deltas)),
    "peft-mixed": lambda name, setting: Mixed(setting.load().model, len(setting.deltas)),
    "wrapped": _wrapped,
    "generate": lambda name, setting: BaseOnly(name, setting.load().model),
    "manager": lambda name, setting: Manager(setting.load().model),
}


@contextmanager
def open_systems(names: Sequence[str], setting: Setting) -> Iterator[Mapping[str, System]]:
    """Those systems, until the block ends."""
    systems: dict[str, System] = {}
    try:
        for name in names:
            systems[name] = SYSTEMS[name](name, setting)
        yield systems
    finally:
        for system in systems.values():
            system.close()
