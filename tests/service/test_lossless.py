"""A lossless delta through the server: uploaded, or made there, it answers as the fine-tune itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.service.compressing import compressed, put_folder
from tests.service.serving import Serve, Served, ok, probabilities
from transformers import AutoModelForImageClassification

PIXELS = torch.randn(3, 3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(0))
ARRAYS = [{"array": image.tolist()} for image in PIXELS]


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve("vit")


@pytest.fixture
def tuned(finetune_folder: Callable[..., Path]) -> Path:
    return finetune_folder("vit", 1, scale=0.05)


def check_answers(served: Served, tuned: Path, tmp_path: Path) -> None:
    expected = probabilities(AutoModelForImageClassification.from_pretrained(tuned), pixel_values=PIXELS)
    torch.testing.assert_close(served.probabilities("math", ARRAYS), expected, atol=1e-6, rtol=0)
    before = pico.weights(served.backbone.folder)
    half = pico.rewrite(tuned, tmp_path / "half", lambda t: {n: before[n] + 0.5 * (t[n] - before[n]) for n in t})
    expected = probabilities(AutoModelForImageClassification.from_pretrained(half), pixel_values=PIXELS)
    torch.testing.assert_close(served.probabilities("0.5*math", ARRAYS), expected, atol=1e-6, rtol=0)
    assert ok(served.post("/v1/base/verify"))["ok"]


def test_uploaded(served: Served, tuned: Path, tmp_path: Path) -> None:
    file = pico.delta_file(served.backbone.folder, tuned, tmp_path / "d", method="lossless")
    record = served.upload("math", file)
    assert (record["summary"]["method"], record["summary"]["density"]) == ("lossless", 1.0)
    check_answers(served, tuned, tmp_path)


def test_compressed_on_the_server(served: Served, tuned: Path, tmp_path: Path) -> None:
    job = compressed(served, {"name": "math", "files": put_folder(served, tuned), "method": "lossless"})
    assert (job["state"], job["error"]) == ("done", None), job["error"]
    assert job["result"]["report"]["sizes"]["lossless"] > 0
    check_answers(served, tuned, tmp_path)
