from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.service.commands.conftest import Cli

from patchbay.delta import DeltaFile


def test_report_agrees_with_the_file(cli: Cli, base: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = cli("compress", "--base", base, "--finetuned", tuned, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["path"] == str(out)
    assert report["num_bytes"] == out.stat().st_size
    assert report["original_bytes"] == (tuned / "model.safetensors").stat().st_size
    assert report["ratio"] == pytest.approx(report["original_bytes"] / report["num_bytes"])
    assert DeltaFile.open(out).manifest.compression.density == report["density"] == 0.05
    assert result.stderr == ""


def test_closing_table(cli: Cli, base: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = cli("compress", "--base", base, "--finetuned", tuned, "--out", out)
    assert result.exit_code == 0, result.stderr
    for row in ("bytes", "ratio", "bits per parameter", "relative error", "seconds"):
        assert row in result.stdout
    assert f"{out.stat().st_size:,} bytes" in result.stdout


def test_every_option_reaches_the_file(cli: Cli, base: Path, tuned: Path, tmp_path: Path) -> None:
    common = ["compress", "--base", base, "--finetuned", tuned, "--out"]
    random, scaled = tmp_path / "random.safetensors", tmp_path / "scaled.safetensors"
    chosen = ["--method", "random", "--seed", 7, "--density", 0.25, "--values", "sign"]
    assert cli(*common, random, *chosen).exit_code == 0
    compression = DeltaFile.open(random).manifest.compression
    assert (compression.method, compression.seed, compression.density) == ("random", 7, 0.25)
    assert compression.params == {"values": "sign"}
    assert cli(*common, scaled, "--scale", 1.5, "--exact").exit_code == 0
    file = DeltaFile.open(scaled)
    assert file.manifest.compression.params["scale"] == 1.5
    assert any(entry.exceptions for entry in file.manifest.tensors.values())


def test_an_existing_file_is_kept_unless_forced(cli: Cli, base: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    args = ["compress", "--base", base, "--finetuned", tuned, "--out", out]
    refused = cli(*args)
    assert refused.exit_code == 2 and "--force" in refused.stderr and out.read_text() == "mine"
    assert cli(*args, "--force").exit_code == 0
    assert DeltaFile.open(out).num_bytes == out.stat().st_size


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--density", "1.5"], "invalid_recipe"),
        (["--density", "nan"], "invalid_recipe"),
        (["--values", "int3"], "invalid_recipe"),
        (["--method", "best"], "invalid_recipe"),
        (["--method", "random", "--scale", "2"], "invalid_recipe"),
        (["--scale", "nan"], "invalid_recipe"),
        (["--base", "nowhere"], "unsupported_backbone"),
    ],
)
def test_bad_input_writes_nothing(
    cli: Cli, base: Path, tuned: Path, tmp_path: Path, options: list[str], code: str
) -> None:
    args = ["compress", "--base", base, "--finetuned", tuned, "--out", tmp_path / "x.safetensors", "--json"]
    result = cli(*args, *options)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == code
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_belong_together(
    cli: Cli, base: Path, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    result = cli("compress", "--base", base, "--finetuned", model_folder("llama"), "--out", out, "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["code"] == "finetune_mismatch"
    assert not out.exists()
