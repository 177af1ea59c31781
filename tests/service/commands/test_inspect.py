from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.service.commands.conftest import Cli

from patchbay.delta import DeltaFile, SparseRows, write_delta
from patchbay.delta.encode import Streams


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
    assert all(sizes[part] > 0 for part in ("header", "positions", "values", "dense"))
    assert (sizes["exceptions"] > 0) == (name == "exact_delta")


def test_own_values_are_an_item_of_their_own(cli: Cli, delta: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    manifest, streams = with_own_values(delta)
    write_delta(path, manifest, streams)
    sizes = described(cli, path)["bytes"]
    streams_of = DeltaFile.open(path).stream_bytes
    assert sizes["own"] == streams_of["w.own_positions"] + streams_of["w.own_values"]
    assert (sizes["positions"], sizes["values"]) == (streams_of["w.positions"], streams_of["w.values"])
    rows = described(cli, path, "--tensors")["tensors"]
    assert [row["kept"] for row in rows] == [8]


def test_the_header_is_enough(cli: Cli, delta: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    content = bytearray(delta.read_bytes())
    content[DeltaFile.open(delta).header_bytes :] = bytes(len(content) - DeltaFile.open(delta).header_bytes)
    path.write_bytes(content)
    assert described(cli, path) == described(cli, delta) | {"path": str(path)}


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
    sizes = found["bytes"]
    own_streams = sizes["positions"] + sizes["values"] + sizes["exceptions"]
    assert sum(row["bytes"] or 0 for row in rows) == own_streams


def test_table(cli: Cli, delta: Path) -> None:
    result = cli("inspect", delta, "--tensors")
    assert result.exit_code == 0
    for text in ("fingerprint", "magnitude", "relative error", "bits per parameter", "cat, dog, owl", "header"):
        assert text in result.stdout
    assert "bert.encoder.layer.0.intermediate.dense.weight" in result.stdout and "packed" in result.stdout


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
