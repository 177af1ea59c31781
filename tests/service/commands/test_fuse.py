from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import pico
from tests.service.commands.conftest import Cli

from patchbay.delta import DeltaFile

Common = list[object]


@pytest.fixture
def deltas(base: Path, finetune_folder: Callable[..., Path], tmp_path: Path) -> list[Path]:
    (tmp_path / "sub").mkdir()
    names = ("math.safetensors", "code.safetensors")
    return [
        pico.delta_file(base, finetune_folder("bert_classifier", seed, 0.05), tmp_path / name, density=0.2)
        for seed, name in enumerate(names, 1)
    ]


@pytest.fixture
def common(base: Path, deltas: list[Path], tmp_path: Path) -> Common:
    return ["fuse", "--base", base, "--delta", deltas[0], "--delta", deltas[1], "--out", tmp_path / "out"]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "inputs.txt"
    file.write_text("the cat runs\na big dog eats\nmy owl likes good film\n")
    return file


def report_of(cli: Cli, *args: object) -> dict[str, Any]:
    result = cli(*args, "--json")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_weights(cli: Cli, common: Common, tmp_path: Path) -> None:
    report = report_of(cli, *common)
    assert report["lambdas"] == {"math": 1.0, "code": 1.0}
    assert report["num_bytes"] == (tmp_path / "out").stat().st_size and report["score"] is None
    assert report_of(cli, *common, "--force", "--lambda", 1.4)["lambdas"] == {"math": 1.4, "code": 1.4}
    report = report_of(cli, *common, "--force", "--weight", 0.5, "--weight", -2)
    assert report["lambdas"] == {"math": 0.5, "code": -2.0}
    params = DeltaFile.open(tmp_path / "out").manifest.compression.params
    assert (params["lambda1"], params["name1"], params["lambda2"]) == (0.5, "math", -2.0)


def test_a_search(cli: Cli, common: Common, inputs: Path, deltas: list[Path]) -> None:
    searched = ["--calibration", f"math={inputs}", "--calibration", f"{deltas[1]}={inputs}", "--evaluations", 4]
    report = report_of(cli, *common, *searched)
    assert report["evaluations"] == 4 and report["score"] < 0
    table = cli(*common, *searched, "--force").stdout
    assert "lambdas" in table and "math" in table and "best score" in table


def test_two_files_of_one_name_go_by_their_paths(cli: Cli, base: Path, deltas: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "sub" / "math.safetensors"
    other.write_bytes(deltas[1].read_bytes())
    result = report_of(cli, "fuse", "--base", base, "--delta", deltas[0], "--delta", other, "--out", tmp_path / "out")
    assert list(result["lambdas"]) == [str(deltas[0]), str(other)]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (["--weight", "1"], "lambdas"),
        (["--lambda", "11"], "lambdas"),
        (["--lambda", "1", "--weight", "1"], "weight"),
        (["--calibration", "math"], "calibration"),
        (["--calibration", "nope=inputs.txt"], "calibration"),
        (["--calibration", "math={inputs}"], "calibration"),
        (["--calibration", "math={inputs}", "--calibration", "math={inputs}"], "calibration"),
        (["--head", "nope"], "head"),
        (["--delta", "{math}"], "delta"),
        (["--base", "nowhere"], "base"),
    ],
)
def test_bad_input_writes_nothing(
    cli: Cli, common: Common, inputs: Path, deltas: list[Path], tmp_path: Path, options: list[str], param: str
) -> None:
    filled = [option.replace("{inputs}", str(inputs)).replace("{math}", str(deltas[0])) for option in options]
    result = cli(*common, *filled, "--json")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout)["error"]["param"] == param
    assert not (tmp_path / "out").exists()


def test_an_existing_file_is_kept_unless_forced(cli: Cli, common: Common, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = cli(*common)
    assert result.exit_code == 2 and "--force" in result.stderr and (tmp_path / "out").read_text() == "mine"
