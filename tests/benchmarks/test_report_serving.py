"""Tables are of what was measured, and say only what was."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.latencies import latencies
from benchmarks.report_serving import markdown, ratios
from benchmarks.results import Line

HEAD = {
    "started": "2026-01-01 00:00",
    "processor": "a processor",
    "cores": 2,
    "threads": 1,
    "model": "2M",
    "dtype": "fp32",
    "memory_bytes_s": 12.34e9,
    "cached_read_bytes_s": 5e9,
    "write_bytes_s": 0.5e9,
    "read_bytes_s": 1.5e9,
}
TIMES = [[[0.5, 0.75], [1.5, 2.0]]] * 3
ARRIVALS = [0.0, 1.0]


def line(system: str, cpu: list[float], wall: float = 2.0, **more: Any) -> Line:
    return {
        "kind": "serving",
        "work": "two",
        "system": system,
        "resident_bytes": 2_000_000,
        "num_deltas": 0,
        "num_tokens": 4,
        "arrivals": ARRIVALS,
        "times": TIMES,
        "cpu": cpu,
        "wall": [wall] * len(cpu),
        **latencies(TIMES, ARRIVALS),
        **more,
    }


def test_systems_are_compared_round_by_round() -> None:
    base, swap = line("base", [1.0, 2.0, 4.0]), line("swap", [3.0, 5.0, 12.0], wall=4.0)
    assert ratios(swap, base) == [3.0, 2.5, 3.0]
    shown = markdown(HEAD, [base, swap])
    assert "a processor, 2 cores, 1 thread(s), Llama 2M, fp32; medians of 3 rounds" in shown
    assert "memory 12.3 (a copy, read and written); the checkpoint from the page cache 5.0, to storage 0.5" in shown
    assert "from storage 1.5." in shown
    row = f"| swap | 5.00 (3.00..12.00) | {statistics.median([3.0, 2.5, 3.0]):.2f} | 1 | 500 / 500 | 250 / 500 |"
    assert row in shown
    assert all(word not in shown for word in ("oodput", "erplexity", "certainty", "beside the base", "delta file"))


def test_what_cannot_be_told_is_not_told() -> None:
    assert "from storage cannot be told here" in markdown(HEAD | {"read_bytes_s": None}, [line("base", [1.0])])


def test_goodput_and_its_objective_are_shown() -> None:
    open_loop = {"objective": {"first": 0.25, "later": 0.05}, "goodput": [1.0, 2.0, 4.0]}
    shown = markdown(HEAD, [line("swap", [1.0] * 3, **open_loop)])
    assert "| goodput /s |" in shown and "| 2.00 |" in shown
    assert "at most 250 ms (5 times the unloaded base's) and later ones 50 ms on average (twice)" in shown


def test_perplexity_stands_beside_speed() -> None:
    found = {"a": {"base": 20.0, "delta": 12.0, "finetune": 10.0}, "b": {"base": 40.0, "delta": 14.0, "finetune": 13.0}}
    more = {"perplexity": found, "num_deltas": 2, "delta_bytes": [1000, 3000]}
    shown = markdown(HEAD | {"model": "trained"}, [line("base", [1.0], **more), line("automatic", [1.0], **more)])
    rows = {row.split(" | ")[0]: row for row in shown.splitlines()}
    assert "| 30.000 |" in rows["| base"] and "| 13.000 |" in rows["| automatic"]
    assert "the fine-tunes themselves 11.500, the base 30.000" in shown
    assert "A delta file has 2 kB on average." in shown and "the trained Llama of 10 M" in shown


def test_the_base_is_bounded_against_generate_from_ten_rounds_on() -> None:
    few = [line("base", [1.05] * 9), line("generate", [1.0] * 9)]
    assert "certainty" not in markdown(HEAD, few)
    lines = [line("base", [0.9] * 10), line("wrapped", [1.05] * 10), line("generate", [1.0] * 10)]
    shown = markdown(HEAD, lines)
    assert "`base` takes -10.0 % of processor time over `generate`, with 95 % certainty at most -10.0 % (10" in shown
    assert "`wrapped` takes +5.0 % of processor time over `generate`, with 95 % certainty at most +5.0 % (10" in shown


def test_many_deltas_stand_beside_one_dense_model() -> None:
    found = {
        "kind": "resident",
        "deltas": 64,
        "density": 0.01,
        "bytes": 300e6,
        "file_bytes": 60e6,
        "dense_bytes": 200e6,
    }
    shown = markdown(HEAD, [line("base", [1.0]), found])
    assert "64 deltas of signs at density 0.01 take 300 MB beside the base (60 MB as files): 1.50 times one" in shown
