"""`compress --method lossless`, and what `inspect`, `verify` and `reconstruct` say of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.compress.test_write import check_same_bits
from tests.service.commands.conftest import Cli

from patchbay.delta import DeltaFile


@pytest.fixture
def file(cli: Cli, base: Path, tuned: Path, tmp_path: Path) -> Path:
    out = tmp_path / "d.safetensors"
    result = cli("compress", "--base", base, "--finetuned", tuned, "--out", out, "--method", "lossless")
    assert result.exit_code == 0, result.stderr
    assert "  lossless" in result.stdout
    return out


def test_inspect_itemises_it(cli: Cli, file: Path) -> None:
    found = json.loads(cli("inspect", file, "--json", "--tensors").stdout)
    tensors = DeltaFile.open(file).manifest.tensors
    assert found["num_tensors"] == {"lossless": len(tensors)} | dict.fromkeys(
        ("sparse", "delta", "low_rank", "added", "copied"), 0
    )
    total = found["bytes"].pop("total")
    assert sum(found["bytes"].values()) == total == file.stat().st_size
    assert found["bytes"]["lossless"] > 0.5 * total
    assert {(row["kind"], row["values"], row["density"]) for row in found["tensors"]} == {("lossless", "zigzag", 1.0)}
    assert all(row["raw_bytes"] >= 4 * row["kept"] for row in found["tensors"])
    shown = cli("inspect", file, "--tensors")
    assert shown.exit_code == 0
    assert "lossless" in shown.stdout and "zigzag" in shown.stdout


def test_verify_and_reconstruct(cli: Cli, file: Path, base: Path, tuned: Path, tmp_path: Path) -> None:
    assert cli("verify", file, "--base", base).exit_code == 0
    assert json.loads(cli("verify", file, "--base", tuned, "--json").stdout)["error"]["code"] == "wrong_base"
    result = cli("reconstruct", file, "--base", base, "--out", tmp_path / "model")
    assert result.exit_code == 0, result.stderr
    check_same_bits(tmp_path / "model", tuned)


def test_a_size_that_it_does_not_have(cli: Cli, base: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    given = ["compress", "--base", base, "--finetuned", tuned, "--out", out, "--method", "lossless", "--json"]
    result = cli(*given, "--target-size", "9kB")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"], error["param"]) == (2, "invalid_recipe", "target_size")
    assert not out.exists()
