"""`compress --server`: the same options, files, progress and report as at home, over a real port and a real worker."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from pathlib import Path

import httpx2
import pytest
from tests.long import long
from tests.service.commands.conftest import Cli
from tests.service.commands.test_compress import TEXTS, error_of, report_of
from tests.service.commands.test_jobs import working
from tests.service.commands.test_remote import running

from patchbay.backbone import Backbone
from patchbay_server.commands.follow import JobClient
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.settings import Settings


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "inputs.txt"
    file.write_text("\n".join(TEXTS))
    return file


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Settings:
    return Settings(base=str(base), store=tmp_path / "store")


@pytest.fixture
def url(cli: Cli, base: Path, settings: Settings) -> Iterator[str]:
    with running(settings, Backbone.load(base, device="cpu")) as url, working(settings):
        yield url


def test_on_a_server(cli: Cli, url: str, tuned: Path, inputs: Path) -> None:
    common = ["compress", "--finetuned", tuned, "--server", url, "--name", "math"]
    report = report_of(cli, *common, "--density", 0.2, "--method", "magnitude")
    assert report["path"] == f"math@1 on {url}" and report["density"] == 0.2
    staged = report_of(cli, *common, "--calibration", inputs, "--evaluations", 3, "--no-activate")
    assert staged["path"] == f"math@2 on {url}" and staged["evaluations"] == 3
    shown = json.loads(cli("show", "math", "--url", url, "--json").stdout)
    assert [version["current"] for version in shown["versions"]] == [True, False]
    assert shown["versions"][0]["summary"]["method"] == "magnitude"
    table = cli(*common, "--density", 0.1).stdout
    assert f"math@3 on {url}" in table and "bits per parameter" in table


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.txt"
    file.write_text("cat\ndog\nowl\ncat\ndog\n")
    return file


@pytest.mark.parametrize("score", ["accuracy", "log_likelihood"])
def test_labels_on_a_server_give_the_same_file(
    cli: Cli, url: str, base: Path, tuned: Path, inputs: Path, labels: Path, tmp_path: Path, score: str
) -> None:
    named = shutil.copytree(tuned, tmp_path / "math")  # the file says what it was made of
    searched = ["--calibration", inputs, "--labels", labels, "--score", score, "--evaluations", 4, "--density", 0.05]
    out = tmp_path / "here.safetensors"
    here = report_of(cli, "compress", "--base", base, "--finetuned", named, "--out", out, *searched)
    there = report_of(cli, "compress", "--finetuned", tuned, "--server", url, "--name", "math", *searched)
    unlike = {"path": f"math@1 on {url}", "seconds": there["seconds"]}
    assert there == here | unlike
    assert httpx2.get(f"{url}/v1/deltas/math/file").content == out.read_bytes()


def test_labels_that_do_not_match_are_not_sent(
    cli: Cli, url: str, tuned: Path, inputs: Path, labels: Path, tmp_path: Path
) -> None:
    searched = ["compress", "--finetuned", tuned, "--server", url, "--name", "math", "--calibration", inputs]
    labels.write_text("cat\n")
    error = error_of(cli, *searched, "--labels", labels, "--score", "accuracy")
    assert (error["param"], error["message"]) == ("labels", "1 labels for 5 calibration inputs")
    assert error_of(cli, *searched[:-1], tmp_path / "nowhere.txt")["param"] == "calibration"
    assert error_of(cli, *searched, "--score", "accuracy")["param"] == "labels"
    assert not list((tmp_path / "store" / "blobs" / "sha256").iterdir())


def test_what_a_server_needs(cli: Cli, tuned: Path) -> None:
    common = ["compress", "--finetuned", tuned, "--server", "http://127.0.0.1:9"]
    assert error_of(cli, *common)["param"] == "name"
    for option in ("--base", "--out"):
        assert error_of(cli, *common, "--name", "math", option, "x")["param"] == option.removeprefix("--")
    assert error_of(cli, *common, "--name", "math", "--force")["param"] == "force"
    unreachable = cli(*common, "--name", "math", "--json")
    assert unreachable.exit_code == 1 and json.loads(unreachable.stdout)["error"]["code"] == "server_unreachable"


BUDGET = 40
FRAME = re.compile(rf"compress: search evaluation (\d+), best score (-\S+) .*?(\d+)/{BUDGET} (\S+)")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TERMINAL = {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "150"}


@pytest.mark.parametrize("bound", [("--target-size", "20kB"), pytest.param(("--target-kl", "0.00003"), marks=long)])
def test_a_search_is_followed(
    cli: Cli,
    url: str,
    settings: Settings,
    tuned: Path,
    inputs: Path,
    bound: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a terminal as by server-sent events: which evaluation it is, the best score so far and the time left."""
    monkeypatch.setattr("patchbay_server.jobs.run.REPORT_S", 0.0)  # the pico model's whole search takes no second
    args = ["compress", "--finetuned", tuned, "--server", url, "--name", "math", "--calibration", inputs, *bound]
    result = cli(*args, "--evaluations", BUDGET, env=TERMINAL)
    assert result.exit_code == 0, result.stderr
    with JobClient(url) as client, closing(SqliteQueue(settings.jobs_path)) as queue:
        [job] = queue.list_jobs("default", 9)
        told = [event.data for event in client.follow(job.id) if event.kind == "progress"]
        best = list(accumulate((entry["score"] for entry in queue.evaluations(job.id)), max))
    search = [data for data in told if data["stage"].startswith("search")]
    assert [data["evaluation"] for data in search] == [data["done"] for data in search] == [*range(1, len(best) + 1)]
    assert [data["best_score"] for data in search] == best
    assert {(data["total"], data["evaluations"]) for data in search} == {(BUDGET, BUDGET)}
    # A search for a size goes on after the density was fitted again, and says nothing of its end at first.
    etas = [data["eta_seconds"] for data in search if data["done"] < BUDGET]
    assert etas[0] is None and etas.count(None) <= 2
    assert all(eta > 0 for eta in etas if eta is not None)

    # Where a stage begins, the bar is at 0 for a moment.
    frames = [frame for frame in FRAME.findall(ESCAPES.sub("", result.stderr)) if frame[2] != "0"]
    assert frames and all(number == done for number, _, done, _ in frames)
    assert {(int(number), score) for number, score, _, _ in frames} <= {
        (number, f"{score:.4g}") for number, score in enumerate(best, 1)
    }
