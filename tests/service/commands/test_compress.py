"""`compress`, in this process and as a process that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.long import long
from tests.service.commands.conftest import Cli
from tests.service.test_cli import command, finish

from patchbay.compress.options import METHODS
from patchbay.delta import DeltaFile
from patchbay_server.commands.compress import staged

DEADLINE_S = 60.0
TEXTS = ("the cat runs", "a big dog eats one fox", "my owl likes good film", "bad", "red green two is not small")
Common = list[object]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "inputs.txt"
    file.write_text("\n".join(TEXTS))
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "x.safetensors"


@pytest.fixture
def common(base: Path, tuned: Path, out: Path) -> Common:
    return ["compress", "--base", base, "--finetuned", tuned, "--out", out]


def report_of(cli: Cli, *args: object) -> dict[str, Any]:
    result = cli(*args, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def record_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.search.jsonl")


def error_of(cli: Cli, *args: object) -> dict[str, str]:
    result = cli(*args, "--json")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    error: dict[str, str] = json.loads(result.stdout)["error"]
    return error


def test_report_agrees_with_the_file(cli: Cli, tuned: Path, out: Path, common: Common) -> None:
    report = report_of(cli, *common)
    assert report["path"] == str(out)
    assert report["num_bytes"] == out.stat().st_size == sum(report["sizes"].values())
    assert report["original_bytes"] == (tuned / "model.safetensors").stat().st_size
    assert report["ratio"] == pytest.approx(report["original_bytes"] / report["num_bytes"])
    compression = DeltaFile.open(out).manifest.compression
    assert (compression.method, compression.density) == ("nps", 0.05) and report["density"] == 0.05
    assert (report["evaluations"], report["score"]) == (0, None)


def test_closing_table(cli: Cli, out: Path, common: Common, inputs: Path) -> None:
    result = cli(*common, "--calibration", inputs, "--evaluations", 3)
    assert result.exit_code == 0, result.stderr
    rows = {line.split("  ")[0] if line[0] != " " else line.split()[0]: line for line in result.stdout.splitlines()}
    wanted = ("delta", "bytes", "positions", "fine-tune", "ratio", "bits per parameter", "without", "method", "density")
    assert rows.keys() >= {*wanted, "relative error", "evaluations", "best of search", "seconds"}
    assert f"{out.stat().st_size:,} bytes" in rows["bytes"] and rows["evaluations"].split()[-1] == "3"
    assert "divergence" in rows["best of search"]
    assert "no: it did not help, or the inputs are fewer than four batches" in rows["tuned at the end"]
    plain = cli(*common, "--force").stdout
    assert not any(row in plain for row in ("evaluations", "best of search", "tuned at the end"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--method", "random", "--seed", 7, "--density", 0.25], {"method": "random", "seed": 7, "density": 0.25}),
        (["--method", "magnitude", "--scale", 1.5, "--values", "bf16"], {"params": {"values": "bf16", "scale": 1.5}}),
        (["--groups", 3], {"num_weights": 3, "support": "sampled"}),
        (["--support", "topk", "--scope", "all", "--groups", 2], {"support": "topk", "scope": "all", "num_weights": 2}),
        *[(["--method", name], {"method": name}) for name in METHODS if name != "scaled_magnitude"],
    ],
)
def test_options_reach_the_file(
    cli: Cli, out: Path, common: Common, given: list[object], expected: dict[str, object]
) -> None:
    report_of(cli, *common, *given)
    compression = DeltaFile.open(out).manifest.compression
    weights = [name for name in compression.params if name.startswith("w") and name[1:].isdigit()]
    found = {**compression.params, **compression.model_dump(), "num_weights": len(weights)}
    assert {name: found[name] for name in expected} == expected


def test_flags_reach_the_file(cli: Cli, out: Path, common: Common) -> None:
    report_of(cli, *common)
    plain = DeltaFile.open(out).manifest.tensors.values()
    report_of(cli, *common, "--exact", "--no-merge-statistics", "--force")
    changed = DeltaFile.open(out).manifest.tensors.values()
    assert any(entry.neurons for entry in plain) and not any(entry.exceptions for entry in plain)
    assert any(entry.exceptions for entry in changed) and not any(entry.neurons for entry in changed)


def test_search_options_reach_the_search(cli: Cli, out: Path, common: Common, inputs: Path) -> None:
    searched = [*common, "--force", "--calibration", inputs, "--evaluations", 30, "--density", 0.02]
    cobyla = report_of(cli, *searched)
    assert cobyla["evaluations"] == 30 and cobyla["score"] <= 0
    first = out.read_bytes()
    report_of(cli, *searched, "--optimizer", "cmaes")
    assert out.read_bytes() != first
    report_of(cli, *searched, "--no-distil")
    scaled = report_of(cli, *searched, "--method", "scaled_magnitude")
    assert scaled["evaluations"] > 1
    assert not record_of(out).exists()


def test_labels_and_scores(cli: Cli, common: Common, inputs: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nowl\ncat\ndog\n")
    searched = [*common, "--force", "--calibration", inputs, "--labels", labels, "--evaluations", 2]
    for score in ("accuracy", "balanced_accuracy"):
        assert 0 <= report_of(cli, *searched, "--score", score)["score"] <= 1
    assert report_of(cli, *searched, "--score", "log_likelihood")["score"] < 0
    labels.write_text("cat\n")
    assert "1 labels for 5" in error_of(cli, *searched, "--score", "accuracy")["message"]


def test_arrays_calibrate_image_models(
    cli: Cli, model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32))
    models = ["--base", model_folder("vit"), "--finetuned", finetune_folder("vit")]
    report = report_of(
        cli, "compress", *models, "--out", tmp_path / "x", "--calibration", images, "--evaluations", 3, "--density", 0.1
    )
    assert report["evaluations"] == 3


def test_a_size_is_met(cli: Cli, out: Path, common: Common) -> None:
    full = report_of(cli, *common, "--density", 0.2)["num_bytes"]
    report = report_of(cli, *common, "--force", "--target-size", f"{full / 1000:.3f}kB")
    assert 0.9 * full < report["num_bytes"] == out.stat().st_size <= full
    assert "too few" in error_of(cli, *common, "--force", "--target-size", "1KiB")["message"]


def test_a_divergence_is_met(cli: Cli, common: Common, inputs: Path) -> None:
    searched = [*common, "--force", "--calibration", inputs, "--evaluations", 2]
    loose, tight = (report_of(cli, *searched, "--target-kl", kl)["density"] for kl in ("0.0001", "0.00003"))
    assert 0 < loose < tight <= 1


def test_an_existing_file_is_kept_unless_forced(cli: Cli, out: Path, common: Common) -> None:
    out.write_text("mine")
    assert "--force" in error_of(cli, *common)["message"]
    assert out.read_text() == "mine"
    report_of(cli, *common, "--force")
    assert DeltaFile.open(out).num_bytes == out.stat().st_size


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        (["--density", "1.5"], "invalid_recipe", "density"),
        (["--density", "nan"], "invalid_recipe", "density"),
        (["--density", "0.1", "--target-size", "1MB"], "invalid_recipe", "target_size"),
        (["--target-size", "much"], "invalid_recipe", "target_size"),
        (["--target-size", "0"], "invalid_recipe", "target_size"),
        (["--target-kl", "0.1"], "invalid_recipe", "target_kl"),
        (["--evaluations", "5"], "invalid_recipe", "evaluations"),
        (["--optimizer", "cmaes"], "invalid_recipe", "optimizer"),
        (["--method", "magnitude", "--groups", "4"], "invalid_recipe", "groups"),
        (["--method", "random", "--support", "topk"], "invalid_recipe", "support"),
        (["--method", "scaled_magnitude"], "invalid_recipe", "method"),
        (["--values", "int3"], "invalid_recipe", "values"),
        (["--method", "best"], "invalid_recipe", "method"),
        (["--method", "random", "--scale", "2"], "invalid_recipe", "scale"),
        (["--method", "magnitude", "--scale", "nan"], "invalid_recipe", "scale"),
        (["--optimizer", "adam"], "invalid_recipe", "optimizer"),
        (["--score", "f1"], "invalid_recipe", "score"),
        (["--score", "accuracy"], "invalid_input", "labels"),
        (["--labels", "labels.txt"], "invalid_input", "labels"),
        (["--calibration", "nowhere.txt"], "invalid_input", "calibration"),
        (["--calibration", "nowhere.txt", "--labels", "labels.txt"], "invalid_input", "score"),
        (["--base", "nowhere"], "unsupported_backbone", "base"),
        (["--name", "math"], "invalid_input", "name"),
        (["--no-activate"], "invalid_input", "no_activate"),
        (["--server", "http://127.0.0.1:9", "--name", "math"], "invalid_input", "base"),
    ],
)
def test_bad_input_writes_nothing(
    cli: Cli, out: Path, common: Common, options: list[str], code: str, param: str
) -> None:
    error = error_of(cli, *common, *options)
    assert (error["code"], error["param"]) == (code, param)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("missing", ["--base", "--out"])
def test_what_is_missing_is_named(cli: Cli, common: Common, missing: str) -> None:
    place = common.index(missing)
    error = error_of(cli, *common[:place], *common[place + 2 :])
    assert error["param"] == missing.removeprefix("--") and missing in error["message"]


def test_models_that_do_not_belong_together(
    cli: Cli, common: Common, out: Path, model_folder: Callable[..., Path]
) -> None:
    assert error_of(cli, *common, "--finetuned", model_folder("llama"))["code"] == "finetune_mismatch"
    assert not out.exists()


@pytest.fixture
def searched(common: Common, inputs: Path) -> Common:
    """A search that takes seconds, without the tuning behind it."""
    return [*common, "--calibration", inputs, "--evaluations", 80, "--density", 0.02, "--no-distil"]


def stopped(args: Common, out: Path, number: int) -> tuple[int, str]:
    """The command as a process, which gets the signal after a few evaluations: (exit code, stderr)."""
    process: subprocess.Popen[str] = command(*map(str, args))
    deadline = time.monotonic() + DEADLINE_S
    while not record_of(out).exists() or record_of(out).read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    exit_code, _, err = finish(process)
    assert not out.exists()
    return exit_code, err


@long
def test_an_interrupted_search_goes_on(cli: Cli, out: Path, searched: Common) -> None:
    exit_code, err = stopped(searched, out, signal.SIGINT)
    record = record_of(out)
    assert exit_code == 130
    assert err.splitlines() == [
        f"the evaluations so far are kept in {record}: the same command goes on from there",
        "error: interrupted",
    ]
    resumed = report_of(cli, *searched)
    assert not record.exists()
    data = out.read_bytes()
    assert report_of(cli, *searched, "--force") == resumed | {"seconds": pytest.approx(0, abs=1e9)}
    assert out.read_bytes() == data


def test_a_killed_search_goes_on_from_what_it_had_found(cli: Cli, out: Path, searched: Common) -> None:
    exit_code, _ = stopped(searched, out, signal.SIGKILL)
    assert exit_code == -signal.SIGKILL
    record = record_of(out)
    header, *lines = record.read_text().splitlines(keepends=True)
    record.write_text(header + json.dumps(json.loads(lines[0]) | {"score": -9.0}) + "\n")
    assert str(record) in error_of(cli, *searched)["message"]
    # A score that no evaluation gives: whoever reports it has taken it from here. The last line is cut off.
    forged = json.dumps(json.loads(lines[1]) | {"score": 0.5}) + "\n"
    record.write_text(header + lines[0] + forged + lines[-1][:9])
    report = report_of(cli, *searched)
    assert report["score"] == 0.5


def test_a_stale_record_is_refused(
    cli: Cli, out: Path, searched: Common, inputs: Path, finetune_folder: Callable[..., Path]
) -> None:
    stopped(searched, out, signal.SIGKILL)
    record, text = record_of(out), inputs.read_text()

    def refused(*more: object) -> str:
        before = record.read_bytes()
        error = error_of(cli, *searched, *more)
        assert error["param"] == "out" and str(record) in error["message"]
        assert record.read_bytes() == before and not out.exists()
        return error["message"]

    assert "options" in refused("--seed", 3)
    assert "options" in refused("--finetuned", finetune_folder("bert_classifier", seed=2))
    inputs.write_text(text + "\nmore")
    assert "options" in refused()
    inputs.write_text(text)
    record.write_text('{"mine": true}\n')
    assert "no record" in refused()


def test_a_run_without_a_search_leaves_a_record_alone(cli: Cli, out: Path, common: Common) -> None:
    record_of(out).write_text("mine")
    report_of(cli, *common)
    assert record_of(out).read_text() == "mine"


def test_the_clock_starts_with_a_stage_and_behind_replayed_evaluations() -> None:
    seen: list[tuple[int, int, str]] = []
    on_progress = staged(lambda *step: seen.append(step), 2)
    steps = [(0, 9, "compare a"), (8, 9, "compare b"), *((n, 4, f"search evaluation {n}") for n in (1, 2, 3, 4))]
    for step in [*steps, (0, 9, "write a")]:
        on_progress(*step)
    assert [step for step in seen if step[0] > 0] == steps[1:]
    assert [note for done, _, note in seen if done == 0] == [
        "compare a",
        "compare a",
        "search evaluation 1",
        "search evaluation 2",
        "write a",
        "write a",
    ]
