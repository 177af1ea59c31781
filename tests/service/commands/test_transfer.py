from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.service.commands.conftest import Cli

from patchbay.compress.calibration import Calibration
from patchbay.compress.transfer import transfer
from patchbay.errors import InvalidRecipe
from patchbay_server.commands.transfer import parse_scales

Common = list[object]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "inputs.txt"
    file.write_text("the cat runs\na big dog eats\nmy owl likes good film\n")
    return file


@pytest.fixture
def common(base: Path, delta: Path, inputs: Path) -> Common:
    return ["transfer", "--base", base, "--delta", delta, "--calibration", inputs, "--scales", "0:1:0.5"]


def test_json_is_the_librarys_curve(cli: Cli, common: Common, base: Path, delta: Path, inputs: Path) -> None:
    result = cli(*common, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    curve = transfer(base, delta, (0.0, 0.5, 1.0), calibration=inputs)
    expected = [{"scale": p.scale, "target": p.target, "retained": p.retained} for p in curve.points]
    assert found["points"] == expected and found["best"] is None and found["plot"] is None
    assert (found["target_measure"], found["retained_measure"]) == ("negative_kl", "negative_kl")


def test_table_with_labels(cli: Cli, common: Common, base: Path, delta: Path, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")
    (tmp_path / "base.txt").write_text("dog\ndog\ndog\n")
    labelled = ["--labels", tmp_path / "labels.txt", "--retained", inputs, "--retained-labels", tmp_path / "base.txt"]
    result = cli(*common, *labelled)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["scale", "target", "retained"] and [row.split()[0] for row in lines[1:4]] == [
        "0",
        "0.5",
        "1",
    ]
    target, kept = (Calibration.read(inputs, tmp_path / f"{name}.txt") for name in ("labels", "base"))
    curve = transfer(base, delta, (0.0, 0.5, 1.0), calibration=target, retained=kept)
    assert [row.split()[1] for row in lines[1:4]] == [f"{p.target:.4f}" for p in curve.points]
    assert [row.split()[2] for row in lines[1:4]] == [f"{p.retained:.4f}" for p in curve.points]
    assert "target: accuracy; retained: accuracy" in result.stdout
    assert curve.best is not None and f"best harmonic mean: scale {curve.best.scale:g}" in result.stdout


def test_a_plot_is_drawn(cli: Cli, common: Common, tmp_path: Path) -> None:
    file = tmp_path / "curve.png"
    assert json.loads(cli(*common, "--plot", file, "--json").stdout)["plot"] == str(file)
    with Image.open(file) as image:
        assert image.format == "PNG" and len(image.convert("L").getcolors(256) or []) > 2


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("0:1.5:0.1", [n / 10 for n in range(16)]),  # no 0.30000000000000004
        ("-1:1:0.5", [-1, -0.5, 0, 0.5, 1]),
        ("0:1:0.4", [0, 0.4, 0.8]),
        ("1:1:1", [1]),
        ("0, 0.5,1", [0, 0.5, 1]),
        ("-0.3", [-0.3]),
        ("0:99:1", list(range(100))),
    ],
)
def test_scales(text: str, scales: list[float]) -> None:
    assert parse_scales(text) == scales


@pytest.mark.parametrize(
    "text",
    ["", "a", "0:1", "0:1:0", "1:0:0.1", "0:1:-1", "0:1:0.5,2", "nan", "1e3", "0,,1", "0:100:1", "0:1:0.000000001"],
)
def test_no_scales(text: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        parse_scales(text)
    assert caught.value.param == "scales"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (["--scales", "0:1"], "scales"),
        (["--scales", "11"], "scales"),
        (["--retained-labels", "x.txt"], "retained_labels"),
        (["--plot", "curve.pdf"], "plot"),
        (["--plot", "nowhere/curve.png"], "plot"),
        (["--calibration", "nowhere.txt"], "calibration"),
        (["--base", "nowhere"], "base"),
    ],
)
def test_bad_input(cli: Cli, common: Common, options: list[str], param: str) -> None:
    result = cli(*common, *options, "--json")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout)["error"]["param"] == param


def test_a_plot_without_matplotlib_is_refused_before_the_sweep(
    cli: Cli, common: Common, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = cli(*common, "--plot", tmp_path / "curve.png")
    assert result.exit_code == 2 and "patchbay[demo]" in result.stderr
    assert not (tmp_path / "curve.png").exists()
