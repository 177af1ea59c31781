from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.service.commands.conftest import Cli

from patchbay.merge import parse


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "inputs.txt"
    file.write_text("the cat runs\na big dog eats\nmy owl likes good film\n")
    return file


@pytest.fixture
def common(base: Path, delta: Path, tuned: Path, inputs: Path) -> list[object]:
    terms = ["--delta", f"a={delta}", "--delta", f"b={tuned}"]
    return ["--base", base, *terms, "--calibration", f"a={inputs}", "--calibration", f"b={inputs}"]


def test_json_and_a_plot(cli: Cli, common: list[object], tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    result = cli("tune", "neuromerging(a, b)", *common, "--grid", "lambda1=0,0.5", "--plot", picture, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["plot"] == str(picture) and picture.read_bytes().startswith(b"\x89PNG")
    best = min(report["trials"], key=lambda trial: trial["divergence"])
    assert report["best"] == best
    recipe = parse(report["recipe"])
    assert (recipe.scale, recipe.params) == (best["scale"], best["params"])
    assert {trial["params"]["lambda1"] for trial in report["trials"]} == {0, 0.5}


def test_warnings_are_shown(cli: Cli, common: list[object]) -> None:
    result = cli("tune", "dare_linear(a, b)", *common)
    assert result.exit_code == 0, result.stderr
    assert "warning: " in result.stdout


def test_a_table_and_the_recipe_to_use(cli: Cli, common: list[object]) -> None:
    result = cli("tune", "ties(a, b)", *common, "--grid", "sign=weighted,unweighted")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["scale", "mean", "a", "b"]
    assert sum(line.startswith("sign=") for line in lines) == 2
    assert parse(lines[-1]).method == "ties"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibration", "a"], "'a' is not NAME=FILE"),
        (["--calibration", "a=x"], "'a' has two calibration files"),
        (["--grid", "lambda1"], "'lambda1' is not KEY=VALUE"),
        (["--grid", "lambda1="], "'lambda1=' is not KEY=VALUE"),
        (["--grid", "lambda1=0,-"], "'-' is no number"),
        (["--grid", "head=a,b"], "head is no parameter"),
        (["--grid", "Lambda=1"], "Lambda"),
        (["--grid", "scale=1,2"], "scale"),
        (["--plot", "curve.jpg"], "does not end in .png"),
    ],
)
def test_wrong_options_are_named(cli: Cli, common: list[object], arguments: list[str], message: str) -> None:
    result = cli("tune", "a + b", *common, *arguments)
    assert result.exit_code != 0 and message in result.stderr
