from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.codec import BITS, COLUMNS, DENSITIES, bound, decode, encode, main, markdown, measure
from benchmarks.laplace import LAYER, draw, keep, to_levels

from benchmarks import codec
from patchbay.delta import Delta, SparseRows
from patchbay.delta.codecs import VALUES

ENTRIES = 98_304
Line = dict[str, Any]


@pytest.fixture(scope="module")
def matrices() -> dict[str, torch.Tensor]:
    return draw(ENTRIES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of the command leaves."""
    folder = tmp_path_factory.mktemp("codec")
    main(arguments(folder))
    return folder


def arguments(cache: Path) -> list[str]:
    return ["--entries", str(ENTRIES), "--repetitions", "2", "--cache", str(cache)]


def lines(cache: Path) -> list[Line]:
    return [json.loads(text) for text in (cache / f"codec-{ENTRIES}.jsonl").read_text("utf-8").splitlines()]


def test_every_value_encoding_has_its_bits() -> None:
    assert BITS.keys() == VALUES.keys()


@pytest.mark.parametrize(
    ("density", "values", "seeded", "expected"),
    [
        (0.5, "sign_tensor", False, 1.5),
        (0.5, "sign_tensor", True, 0.5),
        (0.05, "bf16", False, 0.286397 + 0.8),
        (1.0, "int8", False, 8 + 32 / 128),
        (1.0, "int4", False, 4 + 32 / 128),
        (0.25, "levels", True, 0.75),
    ],
)
def test_the_bound_is_the_entropy_and_the_values_bits(
    density: float, values: str, seeded: bool, expected: float
) -> None:
    assert bound(density, values, seeded=seeded) == pytest.approx(expected, abs=1e-6)


def test_entries_are_layers_and_an_embedding() -> None:
    drawn = draw(4_000_000)
    assert {name: tuple(drawn[f"0.{name}"].shape) for name in LAYER} == LAYER
    assert len(drawn) == len(LAYER) + 1
    total = sum(matrix.numel() for matrix in drawn.values())
    assert 4_000_000 - 384 < total <= 4_000_000
    assert list(drawn) == sorted(drawn)


def test_differences_are_laplacian(matrices: dict[str, torch.Tensor]) -> None:
    values = matrices["words"].double()
    assert values.abs().mean().item() == pytest.approx(1e-3, rel=0.02)
    assert (values**2).mean().sqrt().item() == pytest.approx(math.sqrt(2) * 1e-3, rel=0.02)


@pytest.mark.parametrize("seeded", [False, True])
def test_as_many_are_kept_as_asked(matrices: dict[str, torch.Tensor], seeded: bool) -> None:
    kept = keep(matrices, 0.05, seeded=seeded)
    assert kept.density == pytest.approx(0.05, rel=1e-3)
    assert bool(kept.seeds) == seeded
    largest = kept.rows["words"].values.abs().min() > 2e-3
    assert bool(largest) != seeded


def test_levels_are_four_and_even(matrices: dict[str, torch.Tensor]) -> None:
    rows = keep(matrices, 0.2, seeded=False).rows["words"]
    quantised = to_levels(rows).values.numpy()
    assert (np.sign(quantised) == np.sign(rows.values.numpy())).all()
    _, counts = np.unique(np.abs(quantised), return_counts=True)
    assert len(counts) == 4
    assert counts.max() - counts.min() <= 2


def test_a_file_is_near_the_bound(matrices: dict[str, torch.Tensor]) -> None:
    """Position and sign bits of one matrix at 5 %, without header and manifest."""
    line = measure(keep(matrices, 0.05, seeded=False), "sign_tensor", 1)
    assert 1 < (line["position_bits"] + line["value_bits"]) / line["bound"] < 1.06
    assert line["position_bits"] + line["value_bits"] < line["bits"]


def test_a_reader_that_finds_something_else_is_noticed(
    matrices: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(matrices, 0.05, seeded=False)

    def shifted(path: Path, rows: dict[str, SparseRows]) -> Delta:
        delta = decode(path, rows)
        delta.matrices["words"].values[7] *= 2
        return delta

    monkeypatch.setattr(codec, "decode", shifted)
    with pytest.raises(AssertionError, match="words"):
        measure(kept, "bf16", 1)


def test_sizes_are_those_of_the_file(matrices: dict[str, torch.Tensor], tmp_path: Path) -> None:
    kept = keep(matrices, 0.2, seeded=True)
    file, _ = encode(tmp_path / "delta", kept, "int4")
    line = measure(kept, "int4", 1)
    assert line["bits"] * kept.parameters == 8 * (tmp_path / "delta").stat().st_size
    items = file.itemised()
    assert line["value_bits"] * kept.parameters == pytest.approx(8 * (items["values"] + items["scales"]))


def test_every_encoding_is_measured_at_every_density(cache: Path) -> None:
    machine, *cells = lines(cache)
    assert machine["kind"] == "machine"
    pairs = [(density, seeded) for density in DENSITIES for seeded in (False, True)][:-1]  # at 1 nothing is drawn
    found = [(cell["density"], cell["seeded"], cell["values"]) for cell in cells]
    assert found == [(*pair, values) for pair in pairs for values in VALUES]
    used = {(cell["density"], cell["seeded"]): cell["positions"] for cell in cells}
    assert used[1.0, False] == "all"
    assert {encoding for (_, seeded), encoding in used.items() if seeded} == {"seeded"}
    assert used[0.05, False] == "gap"
    assert all(len(cell[key]) == 2 for cell in cells for key in ("encode_seconds", "decode_seconds"))


def test_a_second_run_measures_what_is_missing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cache / f"codec-{ENTRIES}.jsonl"
    whole = file.read_bytes()
    main(arguments(cache))
    assert file.read_bytes() == whole
    table = capsys.readouterr().out
    assert table == (cache / f"codec-{ENTRIES}.md").read_text("utf-8")
    file.write_bytes(whole[:-30])  # the last line half written
    main(arguments(cache))
    assert [line["kind"] for line in lines(cache)[-2:]] == ["machine", "cell"]
    assert len(lines(cache)) == len(whole.splitlines()) + 1


def test_the_table_has_medians_and_extremes() -> None:
    line = {"density": 0.5, "positions": "gap", "values": "bf16", "parameters": 10**9, "repetitions": 3, "bits": 3.0}
    line |= {"position_bits": 1.0, "value_bits": 1.75, "bound": 2.0}
    line |= {"encode_seconds": [4.0, 1.0, 2.0], "decode_seconds": [1.0, 1.0, 1.0]}
    machine = {"started": "today", "processor": "P", "cores": 2, "python": "3", "torch": "2", "patchbay": "0"}
    head, _, titles, _, row = markdown([line], machine).splitlines()
    assert head.startswith("Measured today on P, 2 cores, one thread;")
    assert titles == f"| {' | '.join(COLUMNS)} |"
    assert row == (
        "| 0.5 | gap | bf16 | 3.0000 | 1.0000 | 1.7500 | 2.0000 | 1.5000 "
        "| 1.000 (0.500..2.000) | 2.000 (2.000..2.000) |"
    )


def test_too_few_entries_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--entries", "383"])
    assert "at least 384 entries" in capsys.readouterr().err
