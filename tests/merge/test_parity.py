"""Under the preset of another tool the methods give that tool's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.golden.mergekit import CASES, FILE, NUM_TERMS, PLANS, SEED, TENSORS, drawn, inputs
from tests.merge.stacks import merged, numbers, stacks_of

from patchbay.merge.draws import uniform
from patchbay.merge.linear import arithmetic_weights
from patchbay.merge.methods import METHODS
from patchbay.merge.recipe import Scalar

TERMS = {"density", "gamma", "epsilon"}  # what terms set for themselves


def golden() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["made"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def ours(method: str, weights: Sequence[float], params: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """Parameters in mergekit's words -> our tensors, all in one merge, with `lambda` as the recipe's scale."""
    found = {name: inputs(name) for name in names}
    differences = {name: torch.stack([one - base for one in tuned]) for name, (base, tuned) in found.items()}
    settings = {key: value for key, value in params.items() if isinstance(value, list)}
    words: dict[str, Scalar] = {"preset": "mergekit"}
    for key in params.keys() - settings.keys() - {"lambda"}:
        words[key] = ("l1" if params[key] else "none") if key == "rescale" else params[key]
    scale = params.get("lambda", 1.0)
    if METHODS[method].combine is not None:
        coefficients = arithmetic_weights(torch.tensor(weights), {}).unsqueeze(1)
        return {
            name: scale * (coefficients * d.flatten(1)).sum(0).reshape(d.shape[1:]) for name, d in differences.items()
        }
    seed = {"seed": SEED} if "seed" in METHODS[method].defaults else {}
    result = merged(method, stacks_of(differences, weights, settings), **words, **seed)
    return {name: scale * tensor for name, tensor in result.items()}


def test_the_file_was_made_from_these_cases() -> None:
    made, tensors = golden()
    assert made["mergekit"] == "0.1.5"
    assert made["cases"] == json.loads(json.dumps(CASES))
    assert made["seed"] == SEED
    listed = [*CASES.items(), *PLANS.items()]
    assert set(tensors) == {f"{case}/{name}" for case, (*_, names) in listed for name in names}
    assert FILE.stat().st_size < 300_000
    assert all(tensor.numel() >= 1000 for tensor in tensors.values())


@pytest.mark.parametrize("case", CASES)
def test_mergekit(case: str) -> None:
    method, weights, params, names = CASES[case]
    expected, got = golden()[1], ours(method, weights, params, names)
    assert list(got) == list(names)
    for name in names:
        size = TENSORS[name][1] / 0.02  # of the small tensor differences are a hundredth
        torch.testing.assert_close(got[name], expected[f"{case}/{name}"], rtol=0, atol=1e-6 * size)


def test_every_method_that_mergekit_has_is_compared() -> None:
    compared = {method for method, *_ in CASES.values()} - {"task_arithmetic"}
    assert compared == {
        "ties",
        "dare_linear",
        "dare_ties",
        "breadcrumbs",
        "breadcrumbs_ties",
        "della",
        "della_linear",
        "sce",
    }
    assert all(
        {key for key, value in params.items() if isinstance(value, list)} <= TERMS for _, _, params, _ in CASES.values()
    )


@pytest.mark.parametrize("method", sorted({method for method, *_ in CASES.values()} - {"task_arithmetic"}))
def test_mergekits_defaults(method: str) -> None:
    expected = golden()[0]["defaults"][method]
    ours = METHODS[method].filled({"preset": "mergekit"})
    for name, default in expected.items():
        if name == "rescale":
            assert ours[name] == ("l1" if default else "none")
        elif name not in ("lambda", "int8_mask"):  # the recipe's scale, and how it stores masks
            assert ours[name] == default, name


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5), (1,), ()])
def test_draws_follow_the_documented_formula(shape: tuple[int, ...]) -> None:
    for term in range(NUM_TERMS):
        assert torch.equal(uniform(SEED, "a.weight", term, shape), drawn(SEED, "a.weight", term, shape).reshape(shape))


PEFT_WEIGHTS = (0.6, 0.4, -0.3)
DENSITIES = (0.2, 0.57, 0.9)


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft.utils.merge_utils")


@pytest.fixture
def differences() -> torch.Tensor:
    found = numbers(3, NUM_TERMS, 40, 30) ** 3
    found[1, ::3] = 0  # a pruned term, and one that cancels another
    found[2, 1] = -found[0, 1]
    return found


@pytest.mark.parametrize("density", DENSITIES)
def test_peft_ties(peft: Any, differences: torch.Tensor, density: float) -> None:
    expected = peft.ties(list(differences), torch.tensor(PEFT_WEIGHTS), density)
    got = merged("ties", stacks_of({"a": differences}, PEFT_WEIGHTS), preset="peft", density=density)
    torch.testing.assert_close(got["a"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_peft_dare(
    peft: Any, differences: torch.Tensor, density: float, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = iter(range(NUM_TERMS))

    def masks(probabilities: torch.Tensor) -> torch.Tensor:
        return (drawn(0, "a", next(terms), tuple(probabilities.shape)) <= probabilities).float()

    monkeypatch.setattr(torch, "bernoulli", masks)
    expected = getattr(peft, method)(list(differences), torch.tensor(PEFT_WEIGHTS), density)
    got = merged(method, stacks_of({"a": differences}, PEFT_WEIGHTS), preset="peft", density=density)
    assert next(terms, None) is None
    torch.testing.assert_close(got["a"], expected, rtol=0, atol=1e-6)
