"""`patchbay neuript pretrain`: from recordings to a folder that is served, compressed and patched as any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.training.recordings import write_edf, write_npz
from typer.testing import CliRunner

from patchbay.models.neuript import NeurIPTForPreTraining
from patchbay_server.cli import app


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_edf(folder / "a" / "x.edf", seconds=10, channels=3)
    write_npz(folder / "y.npz", seconds=10, channels=2)
    return folder


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["neuript", "pretrain", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def asked(data: Path, out: Path, *more: object) -> list[object]:
    short = ["--size", "test", "--window-seconds", 1, "--epochs", 1, "--batch-size", 4, "--held-out", 0.2]
    return ["--data", data, "--out", out, *short, *more]


def test_a_folder_and_a_plot(data: Path, tmp_path: Path) -> None:
    code, out, err = run(*asked(data, tmp_path / "model", "--plot", tmp_path / "loss.png", "--json"))
    assert code == 0, err
    told = json.loads(out)
    assert told["recordings"] == 2 and told["windows"] + told["rejected"] == 20
    assert told["step"] == told["steps"] > 0 and told["judged"] > 0 and told["out"] == str(tmp_path / "model")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    NeurIPTForPreTraining.from_pretrained(tmp_path / "model")
    code, out, _ = run(*asked(data, tmp_path / "model"))
    assert code == 0 and "held out" in out and "of guessing zeros" in out, "there is nothing left to do"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "huge"], "'huge' is no size: test, small, medium, paper"),
        (["--data", "/nowhere"], "has no recording"),
        (["--batch-size", "500"], "fewer than a batch of 500"),
        (["--plot", "loss.jpg"], "does not end in .png"),
    ],
)
def test_refusals(data: Path, tmp_path: Path, more: list[str], message: str) -> None:
    code, _, err = run(*asked(data, tmp_path / "model", *more))
    assert code != 0 and message in err and "Traceback" not in err


def test_other_commands_know_the_folder(data: Path, tmp_path: Path) -> None:
    """Each in a process of its own: nothing but the command has told transformers of the model."""
    assert run(*asked(data, tmp_path / "base"))[0] == 0
    assert run(*asked(data, tmp_path / "tuned", "--seed", 1))[0] == 0
    patchbay = [sys.executable, "-m", "patchbay_server.cli"]
    delta, base = tmp_path / "delta.safetensors", ["--base", tmp_path / "base"]
    for command in (
        ["compress", *base, "--finetuned", tmp_path / "tuned", "--out", delta, "--method", "magnitude"],
        ["verify", delta, *base],
        ["reconstruct", delta, *base, "--out", tmp_path / "whole"],
        ["merge", "0.5*a", *base, "--delta", f"a={delta}", "--out", tmp_path / "half"],
    ):
        done = subprocess.run([*patchbay, *map(str, command)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command[0], done.stderr)
