"""The simulation against what is known of queues."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from benchmarks.fleet import Load, Machine, Policy, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

PLAIN = Machine(alone_s=0.01, speeds=(1.0,), load_s=0.0, delta_bytes=1, room=1000)


@pytest.mark.parametrize("used", [0.3, 0.6, 0.8])
def test_one_replica_is_the_processor_sharing_queue(used: float) -> None:
    """Whose mean time in the system is s / (1 - rho), whatever the distribution of the work."""
    result = simulate(PLAIN, Load(20_000, used / PLAIN.alone_s, 10), 1)
    assert statistics.mean(result.seconds) == pytest.approx(PLAIN.alone_s / (1 - used), rel=0.1)


def test_twice_the_speed_together_carries_twice_the_load() -> None:
    batching = replace(PLAIN, speeds=(1.0, 2.0))
    load = Load(5000, 1.5 / PLAIN.alone_s, 10)
    assert simulate(batching, load, 1).percentile(99) < 1 < simulate(PLAIN, load, 1).percentile(50)


def test_speeds_between_and_beyond_what_was_measured() -> None:
    machine = replace(PLAIN, speeds=(1.0, 2.0, 3.0))
    assert [machine.speed(count) for count in (1, 2, 4, 5, 100)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert 2.0 < machine.speed(3) < 3.0 and machine.most_per_s == 300


def test_with_room_for_all_every_delta_is_loaded_once() -> None:
    result = simulate(replace(PLAIN, load_s=0.05), Load(3000, 20, 20), 1)
    assert result.loads == 20 and result.hits == 2980
    assert max(result.seconds) >= 0.06


def test_affinity_makes_the_rooms_of_all_replicas_one() -> None:
    """Four have room for 25 of 100 deltas each: by affinity each is loaded about once, else again and again."""
    machine, load = replace(PLAIN, load_s=0.02, room=30), Load(6000, 100, 100, exponent=0.0)
    near, far = (simulate(machine, load, 4, policy) for policy in (Policy.AFFINITY, Policy.LEAST_LOAD))
    assert near.hit_rate > 0.95 > 0.5 > far.hit_rate


def test_a_popular_delta_is_spread_over_all_when_one_is_not_enough() -> None:
    machine = replace(PLAIN, capacity=4)
    assert simulate(machine, Load(5000, 3.0 / PLAIN.alone_s, 1), 4).percentile(99) < 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 30), st.integers(1, 30), st.sampled_from(Policy))
def test_laws(requests: int, replicas: int, deltas: int, room: int, policy: Policy) -> None:
    machine = replace(PLAIN, load_s=0.02, room=room)
    result = simulate(machine, Load(requests, 150, deltas), replicas, policy)
    assert len(result.seconds) == requests == result.hits + result.loads
    assert result.loads >= 1 and min(result.seconds) >= machine.alone_s * 0.999
    assert result == simulate(machine, Load(requests, 150, deltas), replicas, policy), "nothing but the seed decides"
