from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.service.commands.conftest import Cli

from patchbay.checkpoint import Checkpoint
from patchbay.compress.merged_model import open_merge
from patchbay.merge import parse

ModelFolder = Callable[..., Path]


@pytest.fixture
def tuned_folder(finetune_folder: ModelFolder) -> Path:
    return finetune_folder("bert_classifier", seed=2)


@pytest.fixture
def common(base: Path, delta: Path, tuned_folder: Path, tmp_path: Path) -> list[object]:
    return ["--base", base, "--delta", f"a={delta}", "--delta", f"b={tuned_folder}", "--out", tmp_path / "out"]


def report_of(cli: Cli, *args: object) -> dict[str, Any]:
    result = cli("merge", *args, "--json")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_an_expression(
    cli: Cli, common: list[object], base: Path, delta: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    report = report_of(cli, "0.5*a + 0.5*b", *common)
    expected = dict(open_merge(base, parse("0.5*a + 0.5*b"), {"a": delta, "b": tuned_folder}).tensors())
    found = pico.weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert report["recipe"] == "0.5*a + 0.5*b" and report["tensors"] == len(expected)
    assert set(report["terms"]) == {"a", "b"}


def test_a_file_and_a_dtype(cli: Cli, common: list[object], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"method": "linear", "terms": [{"delta": "a"}, {"delta": "b", "weight": 0.5}]}')
    result = cli("merge", recipe, *common, "--dtype", "bf16")
    assert result.exit_code == 0 and "linear(a, 0.5*b)" in result.stdout
    assert {stored.dtype for stored in Checkpoint.open(tmp_path / "out").tensors.values()} == {"BF16"}


def test_weights_alone(cli: Cli, base: Path, delta: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    report = report_of(cli, "a", "--base", base, "--delta", f"a={delta}", "--out", out)
    assert report["path"] == str(out) and out.stat().st_size > report["bytes"]


@pytest.mark.parametrize(
    ("recipe", "options", "code", "message"),
    [
        ("0.5*c", [], "not_found", "'c'"),
        ("a +", [], "invalid_expression", "operator|expected|name"),
        ("nosuch(a)", [], "unknown_method", "nosuch"),
        ("linear(a; nosuch=1)", [], "invalid_recipe", "nosuch"),
        ("linear(a, -1*b)", [], "invalid_recipe", "sum to 0"),
        ("task_arithmetic(a, b; head=c)", [], "ambiguous_head", "not among"),
        ("x", ["--delta", "x=nowhere"], "invalid_input", "nowhere"),
        ("x", ["--delta", "x={text}"], "malformed_delta", "no safetensors"),
        ("x", ["--delta", "x={other}"], "wrong_base", "made for base"),
        ("x", ["--delta", "x={encoder}"], "finetune_mismatch", "base"),
        ("a", ["--delta", "a={text}"], "invalid_recipe", "twice"),
        ("a", ["--delta", "a"], "invalid_recipe", "NAME=PATH"),
        ("a", ["--delta", "base=a"], "invalid_name", "the base's own name"),
        ("a", ["--delta", "A=x"], "invalid_name", "A"),
        ("none.json", [], "os_error", "none.json"),
        ("none.yaml", [], "os_error", "none.yaml"),
    ],
)
def test_bad_input(
    cli: Cli,
    common: list[object],
    model_folder: ModelFolder,
    tmp_path: Path,
    recipe: str,
    options: list[str],
    code: str,
    message: str,
) -> None:
    """One sentence, or an expression with a caret, and nothing is written."""
    text, encoder = tmp_path / "text", model_folder("llama")
    text.write_text("no delta")
    llama = pico.delta_file(encoder, pico.perturb(encoder, tmp_path / "tuned"), tmp_path / "other")
    places = {"text": text, "other": llama, "encoder": encoder}
    before = sorted(path.name for path in tmp_path.iterdir())
    result = cli("merge", recipe, *common, *(option.format(**places) for option in options), "--json")
    assert result.exit_code == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["code"] == code
    assert any(part in result.stderr for part in message.split("|")), result.stderr
    assert len(result.stderr.strip().splitlines()) == (3 if code == "invalid_expression" else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_out_is_looked_at_first(cli: Cli, common: list[object], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    result = cli("merge", "a", *common)
    assert result.exit_code == 2 and "not an empty folder" in result.stderr
    result = cli("merge", "a", *common[:-1], tmp_path / "out" / "mine")
    assert result.exit_code == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_heads(cli: Cli, model_folder: ModelFolder, tmp_path: Path) -> None:
    base, out = model_folder("bert_encoder"), tmp_path / "out"
    one, two = model_folder("bert_classifier", seed=5), model_folder("bert_classifier", seed=6)
    common = ["--base", base, "--delta", f"a={one}", "--delta", f"b={two}", "--out", out]
    result = cli("merge", "a + b", *common)
    assert result.exit_code == 2 and "--head a" in result.stderr and not out.exists()
    assert report_of(cli, "task_arithmetic(a, b; head=b)", *common)["head"] == "b"
    assert torch.equal(pico.weights(out)["classifier.weight"], pico.weights(two)["classifier.weight"])
    result = cli("merge", "a + b", *common[:-1], tmp_path / "other", "--head", "c")
    assert result.exit_code == 2 and "'c' is not among" in result.stderr
    report = report_of(cli, "0.6*a + 0.4*b", *common[:-1], tmp_path / "other", "--head", "b")
    assert (report["head"], report["recipe"]) == ("b", "task_arithmetic(0.6*a, 0.4*b; head=b)")
    assert torch.equal(pico.weights(tmp_path / "other")["classifier.weight"], pico.weights(two)["classifier.weight"])


def test_the_head_of_a_document(cli: Cli, model_folder: ModelFolder, tmp_path: Path) -> None:
    """mergekit's YAML has no word for it."""
    one, two = model_folder("bert_classifier", seed=5), model_folder("bert_classifier", seed=6)
    document = tmp_path / "recipe.yaml"
    document.write_text("merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n")
    common = ["--base", model_folder("bert_encoder"), "--delta", f"a={one}", "--delta", f"b={two}"]
    assert report_of(cli, document, *common, "--out", tmp_path / "out", "--head", "a")["head"] == "a"
