from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.service.commands.conftest import Cli

from patchbay.compress.reconstruct import reconstruct

ModelFolder = Callable[..., Path]


@pytest.fixture
def common(base: Path, tmp_path: Path) -> list[object]:
    return ["--base", base, "--out", tmp_path / "out"]


def report_of(cli: Cli, *args: object) -> dict[str, Any]:
    result = cli("export", *args, "--json")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_delta_file_is_what_reconstruct_writes(
    cli: Cli, common: list[object], base: Path, delta: Path, tmp_path: Path
) -> None:
    report = report_of(cli, delta, "--format", "hf", *common)
    reconstruct(delta, base, tmp_path / "expected")
    found, expected = pico.weights(tmp_path / "out"), pico.weights(tmp_path / "expected")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert (report["format"], report["recipe"]) == ("hf", "tuned")


def test_names_expressions_and_recipes(
    cli: Cli, common: list[object], delta: Path, tuned: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "half.json"
    recipe.write_text('{"terms": [{"delta": "a", "weight": 0.5}]}')
    bound = ["--delta", f"a={delta}", "--delta", f"b={tuned}", "--format", "hf"]
    reports = [
        report_of(cli, what, *bound, *common[:-1], tmp_path / f"out{number}")
        for number, what in enumerate(("a", "0.5*a", recipe, tuned))
    ]
    assert [report["recipe"] for report in reports[:3]] == ["a", "0.5*a", "0.5*a"]
    one, two = (pico.weights(tmp_path / f"out{number}") for number in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_name_goes_before_a_file(
    cli: Cli, common: list[object], delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("no delta")
    report_of(cli, "a", "--delta", f"a={delta}", "--format", "hf", *common)
    result = cli("export", "a", "--format", "hf", *common[:-1], tmp_path / "other")
    assert result.exit_code == 2 and "no safetensors" in result.stderr


def test_lora(cli: Cli, common: list[object], delta: Path, tmp_path: Path) -> None:
    result = cli("export", delta, "--format", "lora", "--rank", 4, *common)
    assert result.exit_code == 0, result.stderr
    for word in ("relative error", "linear", "norm", "overall", "rank"):
        assert word in result.stdout
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_lora_says_what_is_lost(
    cli: Cli, model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    common = ["--base", model_folder("vit"), "--out", tmp_path / "out", "--format", "lora"]
    result = cli("export", finetune_folder("vit"), *common)
    assert result.exit_code == 0, result.stderr
    assert "lost: " in result.stdout and "cls_token" in result.stdout and "%" in result.stdout


def test_overwrite(cli: Cli, common: list[object], delta: Path, tmp_path: Path) -> None:
    report = report_of(cli, delta, "--format", "overwrite", *common)
    assert 0 < report["changed"] < report["entries"]
    result = cli("export", delta, "--format", "overwrite", *common[:-1], tmp_path / "other")
    assert f"{report['changed']:,} of {report['entries']:,} entries" in result.stdout


def test_heads(cli: Cli, model_folder: ModelFolder, tmp_path: Path) -> None:
    base, out = model_folder("bert_encoder"), tmp_path / "out"
    one, two = model_folder("bert_classifier", seed=5), model_folder("bert_classifier", seed=6)
    common = ["--base", base, "--delta", f"a={one}", "--delta", f"b={two}", "--out", out, "--format", "hf"]
    result = cli("export", "a + b", *common)
    assert result.exit_code == 2 and "classification head" in result.stderr and not out.exists()
    assert report_of(cli, "a + b", *common, "--head", "b")["head"] == "b"
    assert torch.equal(pico.weights(out)["classifier.weight"], pico.weights(two)["classifier.weight"])


@pytest.mark.parametrize(
    ("what", "options", "code"),
    [
        ("{delta}", ["--format", "hf", "--rank", "8"], "invalid_recipe"),
        ("{delta}", ["--format", "lora", "--rank", "0"], "invalid_recipe"),
        ("{delta}", ["--format", "hf", "--head", "c"], "ambiguous_head"),
        ("nosuch.safetensors", ["--format", "hf"], "not_found"),
        ("{recipe}", ["--format", "hf"], "not_found"),
    ],
)
def test_bad_input(
    cli: Cli, common: list[object], delta: Path, tmp_path: Path, what: str, options: list[str], code: str
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"terms": [{"delta": "a"}]}')
    result = cli("export", what.format(delta=delta, recipe=recipe), *options, *common, "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["code"] == code, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_an_unknown_format(cli: Cli, common: list[object], delta: Path) -> None:
    result = cli("export", delta, "--format", "gguf", *common)
    assert result.exit_code == 2 and "gguf" in result.stderr
