"""Tables of the serving benchmark: one a work, a row a system. Knows nothing of how it was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.latencies import shown
from benchmarks.report import markdown_table
from benchmarks.results import Line
from benchmarks.slowdown import FEWEST, slowdown

CEILING = "base"  # what others are compared with, where it is there
PLAIN = "generate"  # what the base alone is compared with
Column = Callable[[Line], str]


def markdown(head: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """The machine, a table for each work with what there is to say of it, and what deltas take in memory."""
    timed = [line for line in lines if line["kind"] == "serving"]
    found = [f"{_machine(head)}; medians of {len(timed[0]['wall'])} rounds, systems in turns.", _bandwidths(head)]
    for work in dict.fromkeys(line["work"] for line in timed):
        rows = [line for line in timed if line["work"] == work]
        found += [f"**{work}**", _table(rows), *_remarks(rows)]
    found += [_resident(head, line) for line in lines if line["kind"] == "resident"]
    return "\n\n".join(found) + "\n"


def ratios(line: Line, ceiling: Line) -> list[float]:
    """Round by round, so that a machine whose speed drifts changes little."""
    return [ours / base for ours, base in zip(line["cpu"], ceiling["cpu"], strict=True)]


def perplexity(line: Line, of: str) -> float:
    """The mean over fine-tunes. `of`: `base`, `delta` or `finetune`."""
    return float(statistics.mean(found[of] for found in line["perplexity"].values()))


def _machine(head: Mapping[str, Any]) -> str:
    named = "the trained Llama of 10 M" if head["model"] == "trained" else f"Llama {head['model']}"
    return (
        f"Measured {head['started']} on {head['processor']}, {head['cores']} cores, {head['threads']} thread(s), "
        f"{named}, {head['dtype']}"
    )


def _bandwidths(head: Mapping[str, Any]) -> str:
    read = head["read_bytes_s"]
    back = "cannot be told here" if read is None else f"{read / 1e9:.1f}"
    return (
        f"GB/s: memory {head['memory_bytes_s'] / 1e9:.1f} (a copy, read and written); the checkpoint from the page "
        f"cache {head['cached_read_bytes_s'] / 1e9:.1f}, to storage {head['write_bytes_s'] / 1e9:.1f}, from storage "
        f"{back}."
    )


def _table(rows: Sequence[Line]) -> str:
    columns = _columns(rows)
    return markdown_table(list(columns), [[column(row) for column in columns.values()] for row in rows])


def _columns(rows: Sequence[Line]) -> dict[str, Column]:
    """By title; some only where they say something."""
    ceiling = next((line for line in rows if line["system"] == CEILING), None)
    found: dict[str, Column] = {
        "system": lambda line: line["system"],
        "CPU s (min..max)": _spread,
        "/ base": lambda line: "" if ceiling is None else f"{statistics.median(ratios(line, ceiling)):.2f}",
        "tok/s": lambda line: f"{line['num_tokens'] / statistics.median(line['wall']):.0f}",
        "TTFT ms p50 / p95": lambda line: shown(line["ttft"], 1e-3, 0, (50, 95)),
        "ITL ms p50 / p95": lambda line: shown(line["itl"], 1e-3, 0, (50, 95)),
        "E2E s p50 / p95 / p99": lambda line: shown(line["e2e"], 1, 2),
    }
    if "goodput" in rows[0]:
        found["goodput /s"] = lambda line: f"{statistics.median(line['goodput']):.2f}"
    if "perplexity" in rows[0]:
        found["perplexity"] = lambda line: f"{perplexity(line, 'base' if line['system'] == CEILING else 'delta'):.3f}"
    return found | {"resident MB": lambda line: f"{line['resident_bytes'] / 1e6:.0f}"}


def _spread(line: Line) -> str:
    cpu = line["cpu"]
    return f"{statistics.median(cpu):.2f} ({min(cpu):.2f}..{max(cpu):.2f})"


def _remarks(rows: Sequence[Line]) -> list[str]:
    first, found = rows[0], []
    if first["num_deltas"]:
        found.append(f"A delta file has {statistics.mean(first['delta_bytes']) / 1e3:.0f} kB on average.")
    if "objective" in first:
        at_most = {key: 1000 * seconds for key, seconds in first["objective"].items()}
        found.append(
            f"Goodput counts answers whose first token took at most {at_most['first']:.0f} ms (5 times the unloaded "
            f"base's) and later ones {at_most['later']:.0f} ms on average (twice)."
        )
    if "perplexity" in first:
        found.append(
            f"Perplexity on each fine-tune's own held-out text, mean of {len(first['perplexity'])}: the fine-tunes "
            f"themselves {perplexity(first, 'finetune'):.3f}, the base {perplexity(first, 'base'):.3f}."
        )
    plain = next((line for line in rows if line["system"] == PLAIN), None)
    if plain is not None and len(plain["cpu"]) >= FEWEST:
        found += [_bound(line, plain) for line in rows if line["system"] in ("base", "wrapped")]
    return [" ".join(found)] if found else []


def _bound(line: Line, plain: Line) -> str:
    middle, bound = slowdown(ratios(line, plain))
    return (
        f"`{line['system']}` takes {100 * middle:+.1f} % of processor time over `{PLAIN}`, with 95 % certainty at most "
        f"{100 * bound:+.1f} % ({len(line['cpu'])} rounds)."
    )


def _resident(head: Mapping[str, Any], line: Line) -> str:
    return (
        f"{line['deltas']} deltas of signs at density {line['density']:g} take {line['bytes'] / 1e6:.0f} MB beside the "
        f"base ({line['file_bytes'] / 1e6:.0f} MB as files): {line['bytes'] / line['dense_bytes']:.2f} times one dense "
        f"{head['model']} model in bf16, {line['dense_bytes'] / 1e6:.0f} MB."
    )
