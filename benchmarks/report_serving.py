"""Tables of the serving benchmark: one a work, a row a system. Knows nothing of how it was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.report import markdown_table
from benchmarks.results import Line

CEILING = "base"  # what others are compared with, where it is there
TIMED = ("TTFT ms p50 / p95", "ITL ms p50 / p95", "E2E s p50 / p95 / p99")
COLUMNS = ("system", "CPU s (min..max)", "/ base", "tok/s", *TIMED, "resident MB")


def markdown(head: Mapping[str, Any], lines: Sequence[Line]) -> str:
    found = [
        f"Measured {head['started']} on {head['processor']}, {head['cores']} cores, {head['threads']} thread(s), "
        f"Llama {head['shape']}, {head['dtype']}; medians of {len(lines[0]['wall'])} rounds, systems in turns.\n"
    ]
    for work in dict.fromkeys(line["work"] for line in lines):
        rows = [line for line in lines if line["work"] == work]
        ceiling = next((line for line in rows if line["system"] == CEILING), None)
        found.append(f"**{work}**\n\n{markdown_table(COLUMNS, [_row(line, ceiling) for line in rows])}\n")
    return "\n".join(found)


def ratios(line: Line, ceiling: Line) -> list[float]:
    """Round by round, so that a machine whose speed drifts changes little."""
    return [ours / base for ours, base in zip(line["cpu"], ceiling["cpu"], strict=True)]


def _row(line: Line, ceiling: Line | None) -> list[str]:
    cpu, wall = line["cpu"], statistics.median(line["wall"])
    ratio = "" if ceiling is None else f"{statistics.median(ratios(line, ceiling)):.2f}"
    first = [1000 * (times[0] - at) for times, at in _answers(line)]
    between = [1000 * gap for times, _ in _answers(line) for gap in _gaps(times)]
    whole = [times[-1] - at for times, at in _answers(line)]
    return [
        line["system"],
        f"{statistics.median(cpu):.2f} ({min(cpu):.2f}..{max(cpu):.2f})",
        ratio,
        f"{line['num_tokens'] / wall:.0f}",
        f"{_at(first, 50):.0f} / {_at(first, 95):.0f}",
        f"{_at(between, 50):.0f} / {_at(between, 95):.0f}",
        f"{_at(whole, 50):.2f} / {_at(whole, 95):.2f} / {_at(whole, 99):.2f}",
        f"{line['resident_bytes'] / 1e6:.0f}",
    ]


def _answers(line: Line) -> list[tuple[list[float], float]]:
    """Token times and arrival of every answer of every round."""
    return [pair for served in line["times"] for pair in zip(served, line["arrivals"], strict=True)]


def _gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _at(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))] if ordered else 0.0
