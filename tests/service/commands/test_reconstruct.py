from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.service.commands.conftest import Cli
from transformers import AutoModelForSequenceClassification


def test_an_exact_delta_gives_the_fine_tune_back(
    cli: Cli, exact_delta: Path, base: Path, tuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    result = cli("reconstruct", exact_delta, "--base", base, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "path": str(out),
        "architecture": "BertForSequenceClassification",
        "bytes": (out / "model.safetensors").stat().st_size,
    }
    expected, found = pico.weights(tuned), pico.weights(out)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_says_what_to_do_with_the_folder(cli: Cli, delta: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "my model"
    result = cli("reconstruct", delta, "--base", base, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert f"BertForSequenceClassification.from_pretrained('{out}')" in result.stdout
    assert f"patchbay serve --base '{out}'" in result.stdout
    assert result.stderr == ""
    AutoModelForSequenceClassification.from_pretrained(out)


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_folder_in_use_is_left_alone(cli: Cli, delta: Path, base: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "model"
    mine = out if kind == "file" else out / "mine.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    result = cli("reconstruct", delta, "--base", base, "--out", out, "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["param"] == "out"
    assert mine.read_text() == "mine" and len(list(tmp_path.rglob("*"))) == (1 if kind == "file" else 2)


def test_another_base_writes_nothing(cli: Cli, delta: Path, tuned: Path, tmp_path: Path) -> None:
    result = cli("reconstruct", delta, "--base", tuned, "--out", tmp_path / "model", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["code"] == "wrong_base"
    assert list(tmp_path.iterdir()) == []
