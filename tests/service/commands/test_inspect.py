from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.service.commands.conftest import Cli

from patchbay.delta import DeltaFile, SparseRows, write_delta
from patchbay.delta.encode import Streams

VERSION_1 = Path(__file__).parents[2] / "golden" / "delta_v1.safetensors"


def described(cli: Cli, path: Path, *options: str) -> dict[str, Any]:
    result = cli("inspect", path, "--json", *options)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("name", ["delta", "exact_delta"])
def test_items_sum_to_the_file(cli: Cli, request: pytest.FixtureRequest, name: str) -> None:
    path: Path = request.getfixturevalue(name)
    sizes = described(cli, path)["bytes"]
    total = sizes.pop("total")
    assert sum(sizes.values()) == total == path.stat().st_size
    assert all(sizes[part] > 0 for part in ("header", "manifest", "positions", "scales", "values", "vectors"))
    assert (sizes["exceptions"] > 0) == (name == "exact_delta")
    assert sizes == DeltaFile.open(path).itemised()


def test_own_values_are_an_item_of_their_own(cli: Cli, delta: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    manifest, streams = with_own_values(delta)
    write_delta(path, manifest, streams)
    sizes = described(cli, path)["bytes"]
    file = DeltaFile.open(path)
    assert [frame.kind for frame in file.frames] == ["positions", "scales", "values", "own_positions", "own_values"]
    assert sizes["own"] == file.container.rows["0003"] + file.container.rows["0004"]
    rows = described(cli, path, "--tensors")["tensors"]
    assert [row["kept"] for row in rows] == [8]
    assert [row["raw_bytes"] for row in rows] == [sum(map(len, streams.values()))]


def test_header_and_manifest_are_enough(cli: Cli, delta: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    file, content = DeltaFile.open(delta), delta.read_bytes()
    frames = file.num_bytes - file.header_bytes - file.container.rows["manifest"]
    path.write_bytes(content[: file.header_bytes] + bytes(frames) + content[file.header_bytes + frames :])
    assert described(cli, path) == described(cli, delta) | {"path": str(path)}


def test_a_file_of_version_1(cli: Cli) -> None:
    found = described(cli, VERSION_1, "--tensors")
    sizes = found["bytes"]
    assert found["format_version"] == 1
    assert sum(sizes.values()) == 2 * sizes["total"] == 2 * VERSION_1.stat().st_size
    assert sizes["dense"] > 0 and sizes["own"] > 0 and sizes["manifest"] == 0
    assert found["bits_per_parameter_without_heads"] is None
    assert all(row["raw_bytes"] is None for row in found["tensors"])
    assert cli("inspect", VERSION_1, "--tensors").exit_code == 0


def test_parameters_are_the_bases_where_the_file_says_so(cli: Cli, delta: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    manifest, streams = with_own_values(delta)
    head = torch.ones(3, 5)
    manifest["provenance"] |= {"parameters": 1000}
    adder = Streams(dict(manifest["tensors"]), dict(streams))
    adder.add_raw("head", head, copied=False)
    entries, streams = adder.finish()
    write_delta(path, manifest | {"tensors": entries}, streams)
    found = described(cli, path)
    size, in_head = path.stat().st_size, found["bytes"]["added"]
    assert found["bits_per_parameter"] == 8 * size / 1000
    assert found["bits_per_parameter_without_heads"] == 8 * (size - in_head) / 1000


def test_facts(cli: Cli, delta: Path, base: Path, tuned: Path) -> None:
    found = described(cli, delta)
    assert found["base"]["name"] == base.name and found["base"]["fingerprint"].startswith("sha256:")
    assert (found["method"], found["density"], found["params"]) == ("magnitude", 0.1, {"values": "int8"})
    assert found["provenance"]["finetuned"] == tuned.name
    assert found["labels"] == ["cat", "dog", "owl"] and found["tokens"] == []
    assert found["bits_per_parameter"] == pytest.approx(8 * delta.stat().st_size / found["parameters"])
    assert found["ratio"] == pytest.approx(found["provenance"]["original_bytes"] / delta.stat().st_size)
    assert 0 < found["statistics"]["relative_error"] < 1
    assert sum(found["num_tensors"].values()) == len(DeltaFile.open(delta).manifest.tensors)
    assert "tensors" not in found


def test_tensors(cli: Cli, exact_delta: Path) -> None:
    found = described(cli, exact_delta, "--tensors")
    rows = found["tensors"]
    assert [row["name"] for row in rows] == sorted(DeltaFile.open(exact_delta).manifest.tensors)
    assert sum(row["kept"] for row in rows if row["kind"] == "sparse") == found["kept"]
    lengths = [length for frame in DeltaFile.open(exact_delta).frames for length in frame.lengths.values()]
    assert sum(row["raw_bytes"] for row in rows) == sum(lengths)


def test_factors_are_listed_behind_the_kept_entries(cli: Cli, delta: Path, tmp_path: Path) -> None:
    """Their bytes are among the values'; kept are the entries that have a value of their own."""
    path, streams = tmp_path / "x.safetensors", Streams()
    bands = [(torch.ones(6, 2), torch.ones(8, 2), "bf16"), (torch.ones(6, 1), torch.ones(8, 1), "int8")]
    rows = SparseRows((6, 8), torch.arange(0, 48, 4, dtype=torch.int32), torch.ones(12))
    streams.add_sparse("hybrid", rows, "sign_row", torch.float32)
    streams.add_factors("hybrid", bands)
    streams.add_low_rank("low", bands, torch.float32)
    streams.add_sparse("plain", rows, "sign_row", torch.float32)
    entries, data = streams.finish()
    manifest = DeltaFile.open(delta).manifest.model_dump(exclude={"payload_sha256", "format_version", "provenance"})
    provenance = {"finetuned": "x", "tool": "tests", "original_bytes": 1}
    write_delta(path, manifest | {"tensors": entries, "provenance": provenance}, data)
    found = described(cli, path, "--tensors")
    hybrid, low, plain = found["tensors"]
    assert [row["kind"] for row in (hybrid, low, plain)] == ["sparse", "low_rank", "sparse"]
    assert hybrid["values"] == "sign_row, bf16 x2, int8 x1"
    assert (low["values"], plain["values"]) == ("bf16 x2, int8 x1", "sign_row")
    assert (hybrid["kept"], hybrid["density"], low["kept"], found["kept"]) == (12, 12 / 48, 48, 24)
    factors = (6 + 8) * (2 * 2 + 1) + 2 * 2 * (4 + 2)  # bf16, int8 codes, and four lists of one scale each
    assert hybrid["raw_bytes"] - plain["raw_bytes"] == low["raw_bytes"] == factors
    sizes = found["bytes"]
    assert sum(sizes.values()) == 2 * sizes["total"] == 2 * path.stat().st_size
    assert found["num_tensors"] == {"sparse": 2, "delta": 0, "low_rank": 1, "lossless": 0, "added": 0, "copied": 0}
    assert "bf16" in cli("inspect", path, "--tensors").stdout


def test_table(cli: Cli, delta: Path) -> None:
    result = cli("inspect", delta, "--tensors")
    assert result.exit_code == 0
    for text in (
        "fingerprint",
        "magnitude",
        "relative error",
        "bits per parameter",
        "cat, dog, owl",
        "header",
        "manifest",
        "without heads",
    ):
        assert text in result.stdout
    assert "bert.encoder.layer.0.intermediate.dense.weight" in result.stdout


def test_a_file_cannot_steer_the_terminal(cli: Cli, delta: Path, tmp_path: Path) -> None:
    manifest, streams = with_own_values(delta)
    name = "\x1b[2J[red]base[/red]\x07"
    path = tmp_path / "x.safetensors"
    write_delta(path, manifest | {"base": {**manifest["base"], "name": name}}, streams)
    result = cli("inspect", path)
    assert "\x1b" not in result.stdout and "\x07" not in result.stdout
    assert "\\x1b[2J[red]base[/red]\\x07" in result.stdout


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "malformed_delta"), (b"PK\x03\x04 a pickle in a zip", "unsupported_file"), (None, "os_error")],
)
def test_no_delta(cli: Cli, tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    result = cli("inspect", path, "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["code"] == code


def with_own_values(delta: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A delta of one sign matrix, half of whose kept entries have values of their own."""
    streams = Streams()
    rows = SparseRows((4, 8), torch.arange(0, 32, 4, dtype=torch.int32), torch.linspace(-1, 1, 8))
    own = torch.arange(8) % 2 == 0
    streams.add_sparse("w", rows, "sign_row", torch.float32, own)
    entries, data = streams.finish()
    manifest = DeltaFile.open(delta).manifest.model_dump(exclude={"payload_sha256", "format_version"})
    return manifest | {"tensors": entries}, data
