from __future__ import annotations

import json

import pytest
import torch

from benchmarks import plans
from patchbay.merge import build

SHAPES = {"embed.weight": (40, 16), "layers.0.q.weight": (24, 16)}


def test_both_ways_come_to_the_same_model() -> None:
    base, deltas = plans.draw_base(SHAPES), [plans.draw_delta(SHAPES, 0.5, seed) for seed in range(3)]
    plan, expected = build(plans.recipe_of(3), deltas, base).plan, plans.published(base, deltas)
    for name, matrix in plan.matrices.items():
        found = (matrix.base_scale - 1)[:, None] * base.stored(name)
        for coefficients, delta in zip(matrix.coefficients, deltas, strict=True):
            found = found + coefficients[:, None] * delta.difference(name)
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-6)


def test_a_table_and_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(plans, "SIZES", {"pico": SHAPES})
    plans.main(["--models", "pico", "--terms", "2", "--repetitions", "1"])
    assert "| pico | 2 | 0.05 | 768 | 768 |" in capsys.readouterr().out
    plans.main(["--models", "pico", "--terms", "2", "--repetitions", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["bytes"] == 4 * 3 * 64
