from __future__ import annotations

from pathlib import Path

from benchmarks.fleet import Machine, Policy
from benchmarks.scaleout import COUNTS, REPLICAS, draw_plot, drawn, percentiles, simulated, summary

MACHINE = Machine(alone_s=0.01, speeds=(1.0, 1.5, 2.0), load_s=0.02, delta_bytes=10_000, room=100)


def test_every_case_is_simulated_and_drawn(tmp_path: Path) -> None:
    lines = simulated(MACHINE, 60)
    assert len(lines) == len(COUNTS) * len(REPLICAS) * len(Policy)
    assert all(0 <= line["hit_rate"] < 1 and line["p99_s"] > 0 and line["bytes_a_request"] > 0 for line in lines)
    draw_plot(lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_bar_that_is_missed_is_said() -> None:
    times = percentiles([number / 1000 for number in range(1, 101)])
    assert times == {"p50": 0.051, "p95": 0.095, "p99": 0.099}
    one = {"ready_s": 5.0, "requests_s": 90.0, "many": times, "alone": times, "hit_rate": 0.98}
    killed = {"failed": 3, "lost": 4.0, "slowest_s": 1.5, "two_again_s": 12.0}
    report = {"one": one, "two": one, "killed": killed, "bars": {"ready": True, "none failed": False}}
    text = summary(report)
    assert "| two | 5.0 | 90 | 51.0 / 95.0 / 99.0 | 51.0 / 95.0 / 99.0 | 98.0% |" in text
    assert "3 of 1,000 requests failed" in text and text.endswith("BAR MISSED: none failed")


def test_popular_deltas_are_asked_for_more() -> None:
    asked = drawn(1000, 0)
    assert asked.count(0) > 3 * asked.count(9) > 0 and set(asked) == set(range(20))
