from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.training.schedule import Schedule


def test_the_cycle_is_torchs() -> None:
    schedule = Schedule(200, 0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], 3e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-4, total_steps=200, pct_start=0.15, div_factor=25, final_div_factor=1e4, cycle_momentum=False
    )
    for step in range(200):
        assert schedule.rate(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-6), step
        optimiser.step()
        cycle.step() if step < 199 else None


def test_what_follows_goes_down_to_the_lowest() -> None:
    schedule = Schedule(100, 100)
    assert schedule.steps == 200
    assert schedule.rate(100) == pytest.approx(3e-4 / 25) and schedule.rate(200) == pytest.approx(1e-5)
    rates = [schedule.rate(step) for step in range(100, 200)]
    assert rates == sorted(rates, reverse=True)


@given(st.integers(1, 50), st.integers(0, 50))
def test_every_rate_is_in_bounds(cycle: int, rest: int) -> None:
    schedule = Schedule(cycle, rest)
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    assert all(0 < rate <= schedule.highest * 1.000001 for rate in rates)
