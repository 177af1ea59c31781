"""`patchbay neuript`: from recordings to folders that are served, compressed and patched as any other."""

from __future__ import annotations

import json
import os
import shutil
import signal as signals
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.long import long
from tests.training.layouts import write_mental_arithmetic
from tests.training.recordings import signal, write_edf, write_marked, write_npz
from typer.testing import CliRunner

from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTForPreTraining
from patchbay.models.neuript.montage import electrode_positions
from patchbay.models.neuript.steps import Steps
from patchbay.training.checkpoint import state_of
from patchbay.training.examples import PARTS
from patchbay.training.presets import PRESETS
from patchbay_server.cli import app


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_edf(folder / "a" / "x.edf", seconds=10, channels=3)
    write_npz(folder / "y.npz", seconds=10, channels=2)
    return folder


def run(*arguments: object, command: str = "pretrain") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["neuript", command, *map(str, arguments)])
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
    said = [text for text in told["warnings"] if "zeros with" in text]
    assert len(said) == (told["judged"] >= told["zero"]) and err.count("zeros with") == len(said)
    drawn = (tmp_path / "loss.png").read_bytes()
    code, out, _ = run(*asked(data, tmp_path / "model", "--plot", tmp_path / "loss.png"))
    assert code == 0 and "held out" in out and "of guessing zeros" in out, "there is nothing left to do"
    assert (tmp_path / "loss.png").read_bytes() == drawn and len(drawn) > 20_000, "more than empty axes"


def test_a_run_that_is_stopped_keeps_its_steps(data: Path, tmp_path: Path) -> None:
    """Long before the first checkpoint that it would have written."""
    out, kept = tmp_path / "model", list[int]()
    for number in (signals.SIGINT, signals.SIGTERM):
        code, err = stopped([*asked(data, out), "--epochs", 40, "--rest", 10], number)
        state = state_of(out)
        assert code == 130 and state is not None and state.step < 200, err
        assert "stopping after this step; once more stops at once" in err
        told = f"its first {state.step} steps are kept in {out / 'checkpoint'}: the same command goes on from there"
        assert told in err and err.endswith("error: interrupted\n"), err
        kept.append(state.step)
    assert kept[1] > kept[0] > 0, "it went on"


def stopped(arguments: list[object], number: int, name: str = "pretrain") -> tuple[int, str]:
    """Once training has begun, as its bar says: exit code and stderr."""
    command = [sys.executable, "-m", "patchbay_server.cli", "neuript", name, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"TTY_COMPATIBLE": "1"}) as process:
        assert process.stderr is not None
        seen = b""
        while b"pre-training" not in seen and b"fine-tuning" not in seen:
            seen += (read := process.stderr.read1())
            assert read, seen
        process.send_signal(number)
        seen += process.stderr.read()
    return process.returncode, seen.decode().replace("\r", "")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "huge"], "'huge' is no size: test, small, medium, paper"),
        (["--data", "/nowhere"], "there is no folder /nowhere"),
        (["--batch-size", "500"], "fewer than a batch of 500: windows cut: x.edf 10, y.npz 10"),
        (["--channels", "C3,Foo"], "x.edf: it has no channel 'Foo'"),
        (["--channels", "Fp1, C3"], "y.npz: it has no channel 'C3': its channels are Fp1, Fp2"),
        (["--plot", "loss.jpg"], "does not end in .png"),
    ],
)
def test_refusals(data: Path, tmp_path: Path, more: list[str], message: str) -> None:
    code, _, err = run(*asked(data, tmp_path / "model", *more))
    assert code != 0 and message in err and "Traceback" not in err


@long
def test_another_command_knows_the_folder(data: Path, tmp_path: Path) -> None:
    """In a process of its own: nothing but the command has told transformers of the model."""
    assert run(*asked(data, tmp_path / "base"))[0] == 0
    assert run(*asked(data, tmp_path / "tuned", "--seed", 1))[0] == 0
    patchbay = [sys.executable, "-m", "patchbay_server.cli"]
    given = ["--base", tmp_path / "base", "--finetuned", tmp_path / "tuned", "--out", tmp_path / "delta"]
    command = [*patchbay, "compress", *map(str, given), "--method", "magnitude"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    NeurIPTForPreTraining(NeurIPTConfig.of_size("test")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    write_marked(folder / "x.edf", [(2.0 * number, 2.0, f"T{number % 2}") for number in range(15)], seconds=30)
    return folder


def test_a_classifier_from_annotations(base: Path, marked: Path, tmp_path: Path) -> None:
    named = ["--class", "T0=open", "--class", "T1=closed"]
    plot = ["--plot", tmp_path / "confusion.png"]
    asked = ["--base", base, "--data", marked, "--window-seconds", 1, "--channels", "C3,O1,O2"]
    short = ["--epochs", 1, "--validation", 0.2]
    code, out, err = run(*asked, "--out", tmp_path / "model", *named, *short, *plot, "--json", command="finetune")
    assert code == 0, err
    told = json.loads(out)
    assert told["classes"] == ["closed", "open"] and told["epochs"] == 1
    assert told["scores"]["band power + LDA"]["balanced_accuracy"] > 0.8 and told["scores"]["majority"]["kappa"] == 0
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    model = NeurIPTForEEGClassification.from_pretrained(tmp_path / "model")
    steps = Steps.of(model.config.preprocessing)
    assert steps.channels == ("C3", "O1", "O2") and steps.window_seconds == 1.0
    code, out, err = run(*asked, "--out", tmp_path / "frozen", *named, "--frozen", command="finetune")
    assert code == 0, err
    assert "head alone" in out and "fine-tuned" not in out and "AUROC" in out


def test_a_fine_tune_that_is_stopped_says_that_nothing_is_kept(base: Path, marked: Path, tmp_path: Path) -> None:
    asked = ["--base", base, "--data", marked, "--window-seconds", 1, "--channels", "C3,O1,O2", "--epochs", 500]
    named = ["--class", "T0=open", "--class", "T1=closed", "--out", tmp_path / "model"]
    code, err = stopped([*asked, *named], signals.SIGINT, "finetune")
    assert code == 130 and "nothing of the fine-tune is kept; the same command begins anew\n" in err, err
    assert err.endswith("error: interrupted\n") and not (tmp_path / "model").exists()


def test_a_classifier_from_a_table(base: Path, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label,onset,duration\na/x.edf,one,0,5\na/x.edf,two,5,5\ny.npz,two,0,5\ny.npz,one,5,5\n")
    asked = ["--base", base, "--data", data, "--labels", table, "--window-seconds", 1, "--frozen"]
    code, out, err = run(*asked, "--out", tmp_path / "model", "--json", command="finetune")
    assert code == 0, err
    scores = json.loads(out)["scores"]
    assert scores["band power + LDA"] is None, "one recording has three channels, the other two"
    assert list(scores) == ["majority", "band power + LDA", "head alone"]


def test_a_classifier_from_a_preset(base: Path, tmp_path: Path) -> None:
    write_mental_arithmetic(tmp_path / "data")
    asked = ["--preset", "mental-arithmetic", "--base", base, "--data", tmp_path / "data", "--out", tmp_path / "model"]
    code, out, err = run(*asked, "--frozen", "--seed", 1, "--json", command="finetune")
    assert code == 0, err
    told = json.loads(out)
    assert told["classes"] == ["rest", "stress"] and told["windows"] == dict.fromkeys(PARTS, 8)
    model = NeurIPTForEEGClassification.from_pretrained(tmp_path / "model")
    assert Steps.of(model.config.preprocessing) == PRESETS["mental-arithmetic"].steps


def test_a_preset_of_other_files(base: Path, marked: Path, tmp_path: Path) -> None:
    asked = ["--preset", "tuab", "--base", base, "--data", marked, "--out", tmp_path / "model"]
    code, _, err = run(*asked, command="finetune")
    assert code != 0 and "has no recording of tuab: they are like edf/train/abnormal/" in err


@pytest.mark.parametrize(
    "more",
    [
        *(["--labels", "x.csv"], ["--class", "a=b"], ["--window-seconds", "4"], ["--stride-seconds", "1"]),
        *(["--onset", "0"], ["--channels", "C3"], ["--bipolar"], ["--average-reference"], ["--line-hz", "50"]),
        *(["--split", "chronological"], ["--test", "0.3"], ["--validation", "0.15"]),
    ],
)
def test_what_a_preset_fixes(base: Path, tmp_path: Path, more: list[str]) -> None:
    asked = ["--preset", "tuab", "--base", base, "--data", tmp_path, "--out", tmp_path / "model", *more]
    code, _, err = run(*asked, command="finetune")
    assert code != 0 and f"{more[0]} is fixed by --preset tuab: leave one of them out" in " ".join(err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "tuap"], "'tuap' is no preset: mental-arithmetic, mumtaz2016"),
        (["--class", "T1"], "--class 'T1' is not TEXT=CLASS"),
        (["--labels", "/nowhere.csv"], "/nowhere.csv cannot be read"),
        (["--labels", "/nowhere.csv", "--class", "a=b"], "give one of them"),
        (["--split", "random"], "'random' is no split: chronological, subject, given"),
        (["--test", "0.8", "--validation", "0.3"], "leave nothing to train on"),
        (["--class", "T7=left"], "no recording has an annotation 'T7': there are 'T0' (8 times), 'T1' (7 times)"),
        (["--split", "subject"], "a split by subject needs two, and there is 'x', with 1 recordings: a subject is the"),
        (["--onset", "0", "--stride-seconds", "1"], "--stride-seconds is for windows that fill an event"),
        (["--line-hz", "500"], "preprocessing.line_hz"),
        (["--channels", "O1,Foo"], "x.edf: it has no channel 'Foo': its channels are Fp1, Fp2, C3, C4, O1, O2"),
        (["--channels", "Oz"], "no channel 'Oz': its channels are Fp1, Fp2, C3, C4, O1, O2; did you mean O2 or O1"),
        (["--base", "/nowhere"], "there is no folder /nowhere"),
        (["--window-seconds", "20"], "nothing that is labelled is as long as a window of 20 s"),
    ],
)
def test_what_finetune_refuses(base: Path, marked: Path, tmp_path: Path, more: list[str], message: str) -> None:
    asked = ["--base", base, "--data", marked, "--out", tmp_path / "model", "--window-seconds", "1"]
    code, _, err = run(*asked, *more, command="finetune")
    assert code != 0 and message in err and "Traceback" not in err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_nothing_is_written_over(base: Path, data: Path, tmp_path: Path, command: str) -> None:
    """And that is said before recordings are read."""
    (tmp_path / "thesis.txt").write_text("of years")
    asked = ["--data", data, "--out", tmp_path] + (["--base", base] if command == "finetune" else [])
    code, _, err = run(*asked, command=command)
    assert code == 2 and "is there already and not empty: take another --out, or remove it" in " ".join(err.split())


def test_recordings_that_are_left_out_are_told_of(base: Path, marked: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(marked, folder)
    write_edf(folder / "plain.edf", seconds=10)
    asked = ["--base", base, "--data", folder, "--window-seconds", 1, "--frozen", "--out", tmp_path / "model"]
    code, out, err = run(*asked, "--json", command="finetune")
    assert code == 0, err
    told = json.loads(out)
    assert told["left_out"] == {str(folder / "plain.edf"): "the labels say nothing"} and told["warnings"] == []
    assert "left out: " in err and "plain.edf: the labels say nothing" in err


def test_labels_that_do_not_fit_are_told_of(base: Path, tmp_path: Path) -> None:
    marks = [(2.0 * number, 2.0, f"T{number % 2}") for number in range(15)]
    write_marked(tmp_path / "data" / "x.edf", [*marks, (29.5, 9.0, "T1"), (99.0, 2.0, "T0")], seconds=30)
    asked = ["--base", base, "--data", tmp_path / "data", "--frozen", "--json", "--window-seconds"]
    code, out, err = run(*asked, 1, "--out", tmp_path / "filled", command="finetune")
    assert code == 0, err
    assert json.loads(out)["warnings"][:3] == [
        "labels that reach past the end of their recording, and are cut there: 1, in x.edf",
        "labels shorter than a window, which are not used: 1, in x.edf",
        "labels outside of their recording, which are not used: 1, in x.edf",
    ]
    assert "warning: labels that reach past the end" in err
    code, out, err = run(*asked, 2, "--onset", 0.5, "--out", tmp_path / "onset", command="finetune")
    assert code == 0, err
    assert json.loads(out)["warnings"][:3] == [
        "windows that reach into the next label: 14, in x.edf",
        "windows that reach out of their recording, and are left out: 2, in x.edf",
        "labels outside of their recording, which are not used: 1, in x.edf",
    ]


def test_more_than_memory_holds(tmp_path: Path) -> None:
    """Refused before the model is made, with what may be lowered."""
    names = [name for name in electrode_positions() if name.startswith(("C", "F", "P"))][:64]
    write_long(tmp_path / "data" / "x.npz", names)
    asked = ["--data", tmp_path / "data", "--out", tmp_path / "model", "--size", "paper", "--window-seconds", 120]
    code, _, err = run(*asked, "--no-reject", "--batch-size", 1, "--held-out", 0)
    assert code == 2 and "windows of 64 channels and 7680 samples takes about" in err
    assert "GB of memory are free: take a smaller --size, fewer --channels or shorter --window-seconds" in err


def write_long(file: Path, names: list[str]) -> None:
    file.parent.mkdir(parents=True)
    rows = signal(121, 64, len(names), 0)
    np.savez(file, signal=rows, rate=64, names=np.array(names), unit="uV")


def test_a_delta_of_a_head_alone_says_so(base: Path, marked: Path, tmp_path: Path) -> None:
    asked = ["--base", base, "--data", marked, "--window-seconds", 1, "--frozen", "--out", tmp_path / "model"]
    assert run(*asked, command="finetune")[0] == 0
    given = ["--base", base, "--finetuned", tmp_path / "model", "--out", tmp_path / "delta"]
    compressed = CliRunner().invoke(app, ["compress", *map(str, given)])
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "delta")])
    for result in (compressed, inspected):
        assert result.exit_code == 0, result.stderr
        assert "the head only: every weight of the base stays as it is" in result.stdout
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "delta"), "--json"])
    assert json.loads(told.stdout)["head_alone"] is True


def test_a_split_by_subject_of_files_without_folders(base: Path, tmp_path: Path) -> None:
    """They may be of one subject, on both sides of the split."""
    for number in range(3):
        marks = [(2.0 * place, 2.0, f"T{place % 2}") for place in range(15)]
        write_marked(tmp_path / "data" / f"x{number}.edf", marks, seconds=30, seed=number)
    asked = ["--base", base, "--data", tmp_path / "data", "--window-seconds", 1, "--frozen", "--split", "subject"]
    code, out, err = run(*asked, "--out", tmp_path / "model", "--json", command="finetune")
    assert code == 0, err
    (said,) = [text for text in json.loads(out)["warnings"] if "subject" in text]
    assert said.startswith("every recording is taken for a subject of its own: neither folders in ")


def test_a_pre_training_that_has_learnt_nothing(data: Path, tmp_path: Path) -> None:
    code, out, err = run(*asked(data, tmp_path / "model", "--rate", 0.3, "--json"))
    assert code == 0, err
    told = json.loads(out)
    assert told["judged"] >= told["zero"]
    (said,) = [text for text in told["warnings"] if "the model has not learnt what they look like" in text]
    assert f"warning: {said}" in err
