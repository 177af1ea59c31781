"""Makes the golden file of what mergekit merges, which the presets `mergekit` must equal. A program; runs only where
mergekit (0.1.5 made the file) can be imported, which needs nothing of this repository:

    python -m tests.golden.mergekit

Its own methods are called, on three fine-tunes of small tensors that follow from a formula. Where it draws masks it is
handed the numbers of `drawn`, so that equal seeds are equal masks. The file holds merged tensors less the base, fp32,
`<case>/<tensor>`; its metadata the cases and mergekit's defaults as JSON, and mergekit's version.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

FILE = Path(__file__).parent / "mergekit.safetensors"
NUM_TERMS = 3
SEED = 5
# name -> shape and size of the differences; one is so small that mergekit takes its mean squares for nothing
TENSORS: Mapping[str, tuple[tuple[int, ...], float]] = {
    "conv.weight": ((10, 11, 10), 0.02),
    "layer.weight": ((40, 30), 0.02),
    "norm.weight": ((1100,), 0.02),
    "small.weight": ((25, 40), 0.0002),
}
EQUAL = (1.0, 1.0, 1.0)
MIXED = (0.6, 0.4, -0.3)
LAYERS = ("layer.weight", "norm.weight")
# case -> method, weights, parameters (a list has one number for each term), tensors
CASES: Mapping[str, tuple[str, tuple[float, ...], Mapping[str, Any], tuple[str, ...]]] = {
    "sum": ("task_arithmetic", MIXED, {}, LAYERS),
    "sum_scaled": ("task_arithmetic", MIXED, {"lambda": 0.7}, LAYERS),
    "ties": ("ties", EQUAL, {}, tuple(TENSORS)),
    "ties_trimmed": ("ties", EQUAL, {"density": [0.2, 0.5, 0.7]}, tuple(TENSORS)),
    "ties_weighted": ("ties", MIXED, {"density": [0.3, 0.29, 1.0], "lambda": 1.3}, LAYERS),
    "ties_sum": ("ties", MIXED, {"density": 0.4, "normalize": False, "rescale": True}, LAYERS),
    "dare_linear": ("dare_linear", MIXED, {"density": [0.5, 0.7, 0.9]}, LAYERS),
    "dare_linear_mean": ("dare_linear", MIXED, {"density": 0.3, "normalize": True, "rescale": False}, LAYERS),
    "dare_ties": ("dare_ties", MIXED, {"density": [0.5, 0.7, 0.9]}, tuple(TENSORS)),
    "dare_ties_mean": ("dare_ties", EQUAL, {"density": 0.3, "normalize": True, "rescale": False}, LAYERS),
    "breadcrumbs": ("breadcrumbs", MIXED, {"density": [0.8, 0.5, 0.9], "gamma": [0.01, 0.05, 0.2]}, tuple(TENSORS)),
    "breadcrumbs_mean": ("breadcrumbs", MIXED, {"density": 0.3, "normalize": True, "rescale": True}, LAYERS),
    "breadcrumbs_ties": ("breadcrumbs_ties", MIXED, {"density": [0.8, 1.0, 0.995], "normalize": True}, LAYERS),
    "della": ("della", MIXED, {"density": [0.5, 0.6, 0.7], "epsilon": [0.15, 0.1, 0.25]}, LAYERS),
    "della_sum": ("della", EQUAL, {"density": 0.6, "normalize": False, "rescale": False}, LAYERS),
    "della_linear": ("della_linear", MIXED, {"density": 0.4}, LAYERS),
    "sce": ("sce", EQUAL, {}, tuple(TENSORS)),
    "sce_selected": ("sce", EQUAL, {"select_topk": 0.3}, tuple(TENSORS)),
}
# methods that are plans here: case -> method, parameters, which of base (0) and fine-tunes are merged, tensors
PLANS: Mapping[str, tuple[str, Mapping[str, Any], tuple[int, ...], tuple[str, ...]]] = {
    "slerp": ("slerp", {"t": 0.3}, (1, 2), LAYERS),
    "nuslerp": ("nuslerp", {"weight": [1.0, 3.0]}, (0, 1, 2), LAYERS),
    "nuslerp_rows": ("nuslerp", {"weight": [1.0, 3.0], "nuslerp_flatten": False}, (0, 1, 2), LAYERS),
    "model_stock": ("model_stock", {}, (0, 1, 2, 3), LAYERS),
    "model_stock_rows": ("model_stock", {"filter_wise": True}, (0, 1, 2, 3), LAYERS),
}


def drawn(seed: int, name: str, term: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The documented formula of `patchbay.merge.draws`, written once more."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {term} {name}".encode()).digest()[:16], "little")
    numbers = np.random.Philox(key=key).random_raw(-(-int(np.prod(shape)) // 2))
    halves = np.stack([numbers & 0xFFFFFFFF, numbers >> 32], axis=1).reshape(-1)[: int(np.prod(shape))]
    return torch.from_numpy((((halves >> 8) + 1) / 2**24).astype(np.float32)).reshape(shape)


def inputs(name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The base and the fine-tunes of one tensor: two change all entries, one two in three, each more the small than the
    large way. In every seventh entry two fine-tunes cancel.
    """
    shape, size = TENSORS[name]
    base, *changes = (2 * drawn(99, name, part, shape) - 1 for part in range(NUM_TERMS + 1))
    changes = [size * change * change * change for change in changes]
    changes[2] = torch.where(drawn(98, name, 2, shape) > 1 / 3, changes[2], 0.0)
    cancels = (torch.arange(base.numel()) % 7 == 0).reshape(shape)
    changes[1], changes[2] = torch.where(cancels, -changes[0], changes[1]), torch.where(cancels, 0.0, changes[2])
    base = torch.where(cancels, 0.0, 25 * size * base)
    return base, [base + change for change in changes]


def make() -> None:
    tensors = {f"{case}/{name}": merged(case, name) for case in CASES for name in CASES[case][3]}
    tensors |= {f"{case}/{name}": planned(case, name) for case in PLANS for name in PLANS[case][3]}
    made = {"mergekit": importlib.metadata.version("mergekit"), "seed": SEED, "cases": CASES, "plans": PLANS}
    made["defaults"] = {method: defaults(method) for method, *_ in CASES.values()}
    save_file(tensors, FILE, {"made": json.dumps(made)})  # one key: safetensors writes several in any order


def defaults(method: str) -> dict[str, Any]:
    """What mergekit takes for parameters that a configuration leaves out."""
    from mergekit.merge_methods.registry import get  # noqa: PLC0415

    return {spec.name: spec.default for spec in get(method).spec.parameters if not spec.required}


def merged(case: str, name: str) -> torch.Tensor:
    """What mergekit makes of one tensor, less the base."""
    from mergekit.merge_methods.base import PerInputValues, TensorGroup  # noqa: PLC0415 (tests read this file without)
    from mergekit.merge_methods.registry import get  # noqa: PLC0415

    method_name, weights, params, _ = CASES[case]
    method, (base, tuned) = get(method_name), inputs(name)
    own = {spec.name for spec in method.spec.input_parameters}
    bound = {"weight": list(weights), **params} if "weight" in own else dict(params)
    for key in own & bound.keys():
        numbers = bound[key] if isinstance(bound[key], list) else [bound[key]] * NUM_TERMS
        bound[key] = PerInputValues(list(enumerate(numbers, start=1)))
    group = TensorGroup.from_tensors([base, *tuned], base_index=0, name=name)
    with mock.patch("torch.bernoulli", _masks(name)):
        return method([group], parameters=bound)[0] - base


def planned(case: str, name: str) -> torch.Tensor:
    """What mergekit makes of one tensor, less the base."""
    from mergekit.merge_methods.base import PerInputValues, TensorGroup  # noqa: PLC0415
    from mergekit.merge_methods.registry import get  # noqa: PLC0415

    method, params, chosen, _ = PLANS[case]
    base, tuned = inputs(name)
    group = TensorGroup.from_tensors([[base, *tuned][place] for place in chosen], base_index=0, name=name)
    own = {"weight": PerInputValues(list(enumerate(params["weight"], start=1)))} if "weight" in params else {}
    return get(method)([group], parameters={**params, **own})[0] - base


def _masks(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Instead of torch.bernoulli, which is called once for each term that is thinned; all are, or none."""
    terms = iter(range(NUM_TERMS))

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        return (drawn(SEED, name, next(terms), tuple(probabilities.shape)) <= probabilities).to(probabilities.dtype)

    return bernoulli


if __name__ == "__main__":
    make()
