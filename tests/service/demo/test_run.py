"""The demo from training to answers, cut short: a real server, real uploads, and every number measured again here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import torch
from tests.long import long

from patchbay.errors import InputError
from patchbay_server.demo.ask import DemoFailed, request_body
from patchbay_server.demo.display import MARKER
from patchbay_server.demo.process import running_server
from patchbay_server.demo.run import run_demo
from patchbay_server.demo.tasks import SHIFTED_TASKS, TASKS, Digits, pixels
from patchbay_server.demo.train import BASE_TRAINING, FINETUNE_TRAINING, evaluate

SHORT = {
    "base_training": replace(BASE_TRAINING, epochs=2),
    "finetune_training": replace(FINETUNE_TRAINING, epochs=1),
    "calibration_images": 16,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with one epoch a task, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        printed = tmp_path_factory.mktemp("out") / "out.txt"
        with printed.open("w") as out:
            patch.setattr("sys.stdout", out)
            run_demo(folder, **SHORT)
    return folder, printed.read_text("utf-8")


@long
def test_results_are_those_of_the_models_in_the_folder(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text("utf-8"))
    digits = Digits.load()
    assert [task["name"] for task in results["tasks"]] == [task.name for task in SHIFTED_TASKS]
    for task, result in zip(SHIFTED_TASKS, results["tasks"], strict=True):
        images, labels = pixels(digits.held_out(task)), torch.from_numpy(digits.held_out_labels)
        assert result["full"] == pytest.approx(evaluate(folder / "finetunes" / task.name, images, labels))
        assert result["base"] == pytest.approx(evaluate(folder / "base", images, labels))
        delta = folder / "deltas" / f"{task.name}.safetensors"
        original = folder / "finetunes" / task.name / "model.safetensors"
        assert (result["bytes"], result["original_bytes"]) == (delta.stat().st_size, original.stat().st_size)
        assert result["ratio"] == pytest.approx(original.stat().st_size / delta.stat().st_size)
        assert 0 <= result["delta"] <= 1
    assert results["base_verified"] is True
    assert results["seconds"] > 0


@long
def test_every_combination_was_asked(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    merges = json.loads((folder / "results.json").read_text("utf-8"))["merges"]
    recipes = [merge["recipe"] for merge in merges]
    assert recipes[0] == "base"
    for task in SHIFTED_TASKS:
        assert {task.name, f"0.5*{task.name}"} <= set(recipes)
    assert any(recipe.startswith("linear(") for recipe in recipes)
    assert all(set(merge["accuracy"]) == {task.name for task in TASKS} for merge in merges)


@long
def test_it_ends_with_lines_that_go_on_from_its_folder(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert re.search(
        rf"patchbay serve --base {re.escape(str(folder))}/base --store {re.escape(str(folder))}/store", printed
    )
    assert len(re.findall(r"^  curl -s http://127\.0\.0\.1:8321/", printed, re.MULTILINE)) == 3
    for name in re.findall(r"-d @(\S+)", printed):
        body = json.loads(Path(name).read_text("utf-8"))
        assert body.keys() == {"model", "input"}
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


@long
def test_the_kept_store_still_has_the_deltas(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    with (
        running_server(folder / "base", folder / "store", tmp_path / "log") as server,
        httpx2.Client(base_url=server.url) as client,
    ):
        names = {model["id"] for model in client.get("/v1/models").json()["data"]}
        answer = client.post("/v1/classify", json=json.loads((folder / "ask-delta.json").read_text("utf-8")))
    assert {task.name for task in SHIFTED_TASKS} <= names
    assert len(answer.json()["data"]) == 3


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="not empty"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"
    assert not (tmp_path / MARKER).exists()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(DemoFailed, match="did not start"),
        running_server(tmp_path, tmp_path / "store", tmp_path / "log"),
    ):
        pass


def test_request_body_is_what_the_server_takes() -> None:
    digits = Digits.load()
    body = request_body("rotated", list(digits.held_out(SHIFTED_TASKS[0])[:2]))
    assert body["model"] == "rotated"
    assert [set(item) for item in body["input"]] == [{"image"}, {"image"}]
