"""The EEG demo cut short: made-up recordings, a real server, and every number measured again here.

`make test-long` runs it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.long import long
from tests.training.recordings import write_edf
from typer.testing import CliRunner

from patchbay.models.neuript import Lobe, NeurIPTForEEGClassification
from patchbay.training.windows import Batches
from patchbay_server.cli import app
from patchbay_server.demo.display import MARKER
from patchbay_server.demo.eeg import PRETRAINING, TUNING, run_eeg_demo
from patchbay_server.demo.eeg_plots import attributions
from patchbay_server.demo.eeg_stages import answers_of, balanced_accuracy
from patchbay_server.demo.eeg_tasks import TASKS
from patchbay_server.demo.simulate import simulate

EYES = TASKS[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a short run of the smallest model, whose deltas need more bits, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("demo") / "run", tmp_path_factory.mktemp("out") / "out.txt"
    with pytest.MonkeyPatch.context() as patch, printed.open("w") as out:
        patch.setattr("patchbay_server.demo.eeg.simulate", partial(simulate, trials=1, rest_s=24.0))
        patch.setattr("patchbay_server.demo.eeg.BITS", (8.0,))
        patch.setattr("patchbay_server.demo.eeg.EVALUATIONS", 1)
        patch.setattr("sys.stdout", out)
        small = replace(PRETRAINING, size="test", epochs=1)
        run_eeg_demo(folder, None, pretraining=small, tuning=replace(TUNING, epochs=1), tasks=TASKS[:1])
    return folder, printed.read_text("utf-8")


@long
def test_results_are_those_of_the_models_in_the_folder(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert results["is_simulated"] is True and results["base_verified"] is True and results["seconds"] > 0
    (found,) = results["tasks"]
    test = EYES.parts(folder / "recordings")["test"]
    full = balanced_accuracy(answers_of(folder / "eyes", test), test)
    assert found["scores"]["fine-tuned"] == pytest.approx(full)
    assert found["windows"] == sum(len(one.labels) for one in test) > 20
    assert list(found["scores"]) == ["majority", "band power + LDA", "head alone", "fine-tuned", "8 bits"]
    file = folder / "eyes" / "8-bits.delta"
    assert found["bytes"]["8 bits"] == file.stat().st_size and found["bits"]["8 bits"] <= 8
    assert found["agreement"]["8 bits"] > 0.9, "of answers over HTTP with those of transformers alone"


@long
def test_what_is_shown(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert "band power + LDA" in printed and "agreement, 8 bits" in printed and "made-up recordings" in printed
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    for stage in ("pre-train the base", "train and compress: eyes", "ask over HTTP"):
        assert f"{stage} ..." in printed and f"{stage}: done in " in printed, "this is no terminal"


@long
def test_shares_of_lobes(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    test = EYES.parts(folder / "recordings")["test"]
    model = NeurIPTForEEGClassification.from_pretrained(folder / "eyes")
    found = attributions(model, Batches([one.source for one in test]))
    assert set(found) == {lobe.name for lobe in Lobe} and sum(found.values()) == pytest.approx(1)
    assert found["TEMPORAL_LEFT"] == found["TEMPORAL_RIGHT"] == 0, "no channel of these is there"


def test_recordings_that_lack_a_run_are_refused_at_once(tmp_path: Path) -> None:
    """And nothing of an earlier run is lost by it."""
    data, folder = tmp_path / "data", tmp_path / "run"
    write_edf(data / "S001R01.edf", seconds=4)
    folder.mkdir()
    (folder / MARKER).touch()
    (folder / "results.json").write_text("{}")
    result = CliRunner().invoke(app, ["demo", "--eeg", "--data", str(data), "--folder", str(folder)])
    assert result.exit_code == 2 and "lacks S001R02.edf, S001R03.edf, S001R06.edf" in result.stderr
    assert (folder / "results.json").exists()


def test_recordings_in_the_folder_that_is_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recorded = write_edf(folder / "recordings" / "S001R01.edf", seconds=4)
    (folder / MARKER).touch()
    result = CliRunner().invoke(app, ["demo", "--eeg", "--data", str(recorded.parent), "--folder", str(folder)])
    assert result.exit_code == 2 and "choose another" in result.stderr and recorded.exists()


def test_data_without_eeg_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--data", str(tmp_path), "--folder", str(tmp_path / "run")])
    assert result.exit_code == 2 and "--data goes with --eeg" in result.stderr
    assert not (tmp_path / "run").exists()
