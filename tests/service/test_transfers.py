"""The sweep of lambda as a job, over the real models and through the handlers that workers use."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tests.service.compressing import digest_of, put_blob
from tests.service.serving import Served, assert_error, ok

from patchbay.compress.calibration import Calibration
from patchbay.compress.transfer import transfer as library_transfer
from patchbay_server.jobs.handlers import Bench
from patchbay_server.jobs.publish import Base
from patchbay_server.jobs.wiring import make_handlers
from patchbay_server.jobs.worker import Worker

DeltaFiles = Callable[..., Path]


def work(served: Served) -> None:
    bench = Bench(served.hub, Base(str(served.backbone.folder), None), 1 << 30)
    assert Worker(served.app.state.queue, "ann", lambda: make_handlers(bench)).run_one()


def images(served: Served, count: int = 6) -> bytes:
    config = served.backbone.architecture.config
    shape = (count, config.num_channels, config.image_size, config.image_size)
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).normal(size=shape).astype(np.float32))
    return file.getvalue()


def test_it_ends_with_the_curve(vit: Served) -> None:
    body = {"model": "math", "scales": [0.0, 0.5, 1.0], "calibration": put_blob(vit, images(vit))}
    response = vit.post("/v1/transfers", body)
    place = response.headers["location"]
    assert ok(response, 202)["kind"] == "transfer"
    work(vit)
    job = ok(vit.get(place))
    assert job["state"] == "done", job["error"]
    points = job["result"]["curve"]["points"]
    assert job["result"]["model"] == "math" and [point["scale"] for point in points] == [0.0, 0.5, 1.0]
    # At 0 the base is retained and the target is farthest, at 1 the other way round.
    assert abs(points[0]["retained"]) < 1e-6 and abs(points[2]["target"]) < 1e-6
    assert points[0]["target"] < points[1]["target"] < points[2]["target"]
    assert points[0]["retained"] > points[1]["retained"] > points[2]["retained"]


def test_with_labels_it_is_the_curve_of_the_command_line(vit: Served, delta_file: DeltaFiles, tmp_path: Path) -> None:
    """Target by accuracy, retained on other inputs and by accuracy of the base's own head."""
    pairs = {
        "target": (images(vit), b"cat\ndog\nowl\ncat\ndog\nowl\n"),
        "kept": (images(vit, 4), b"owl\nowl\ncat\ndog\n"),
    }
    blobs = {name: [put_blob(vit, data) for data in pair] for name, pair in pairs.items()}
    body = {
        "model": "math",
        "scales": [0.0, 0.5, 1.0],
        "calibration": blobs["target"][0],
        "labels": blobs["target"][1],
        "retained": blobs["kept"][0],
        "retained_labels": blobs["kept"][1],
    }
    place = vit.post("/v1/transfers", body).headers["location"]
    work(vit)
    job = ok(vit.get(place))
    assert job["state"] == "done", job["error"]

    def read(name: str) -> Calibration:
        inputs, labels = tmp_path / f"{name}.npy", tmp_path / f"{name}.txt"
        inputs.write_bytes(pairs[name][0])
        labels.write_bytes(pairs[name][1])
        return Calibration.read(inputs, labels)

    curve = library_transfer(
        vit.backbone.folder, delta_file("vit", 1), (0.0, 0.5, 1.0), calibration=read("target"), retained=read("kept")
    )
    assert job["result"]["curve"] == json.loads(json.dumps(asdict(curve)))
    assert curve.target_measure == curve.retained_measure == "accuracy"


def test_labels_of_another_task_fail_the_job(vit: Served) -> None:
    body = {"model": "math", "scales": [1.0], "calibration": put_blob(vit, images(vit))}
    place = vit.post("/v1/transfers", body | {"labels": put_blob(vit, b"cat\n")}).headers["location"]
    work(vit)
    assert ok(vit.get(place))["error"]["param"] == "labels"


def test_a_scale_beyond_what_is_served_fails_the_job(vit: Served) -> None:
    body = {"model": "math", "scales": [1e308], "calibration": put_blob(vit, images(vit))}
    place = vit.post("/v1/transfers", body).headers["location"]
    work(vit)
    job = ok(vit.get(place))
    assert job["state"] == "failed" and job["error"]["code"] == "invalid_recipe"


def test_it_measures_the_version_of_when_it_was_asked(vit: Served) -> None:
    body = {"model": "math@1", "scales": [1.0], "calibration": put_blob(vit, images(vit))}
    place = vit.post("/v1/transfers", body).headers["location"]
    ok(vit.delete("/v1/deltas/math"))
    work(vit)
    assert ok(vit.get(place))["state"] == "done"


def test_refusals_and_keys(vit: Served) -> None:
    good = {"model": "math", "scales": [1.0], "calibration": put_blob(vit, b"a\n")}
    assert_error(vit.post("/v1/transfers", good | {"model": "nope"}), 404, "not_found", "name")
    assert_error(vit.post("/v1/transfers", good | {"calibration": digest_of(b"")}), 404, "not_found", "calibration")
    assert_error(vit.post("/v1/transfers", good | {"scales": []}), 422, "invalid_request", "scales")
    for name in ("labels", "retained"):
        assert_error(vit.post("/v1/transfers", good | {name: digest_of(b"")}), 404, "not_found", name)
    alone = good | {"retained_labels": good["calibration"]}
    assert_error(vit.post("/v1/transfers", alone), 422, "invalid_input", "retained_labels")
    assert ok(vit.get("/v1/jobs"))["data"] == []
    headers = {"Idempotency-Key": "k"}
    first, again = (vit.client.post("/v1/transfers", json=good, headers=headers) for _ in range(2))
    assert (ok(first, 202)["id"], first.headers["location"]) == (ok(again)["id"], again.headers["location"])
    other = vit.client.post("/v1/transfers", json=good | {"scales": [2.0]}, headers=headers)
    assert_error(other, 422, "idempotency_conflict", "idempotency-key")
