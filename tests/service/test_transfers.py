"""The sweep of lambda as a job, over the real models and through the handlers that workers use."""

from __future__ import annotations

import io

import numpy as np
from tests.service.compressing import digest_of, put_blob
from tests.service.serving import Served, assert_error, ok

from patchbay_server.jobs.handlers import Bench
from patchbay_server.jobs.publish import Base
from patchbay_server.jobs.wiring import make_handlers
from patchbay_server.jobs.worker import Worker


def work(served: Served) -> None:
    bench = Bench(served.hub, Base(str(served.backbone.folder), None), 1 << 30)
    assert Worker(served.app.state.queue, "ann", lambda: make_handlers(bench)).run_one()


def images(served: Served) -> bytes:
    config = served.backbone.architecture.config
    shape = (6, config.num_channels, config.image_size, config.image_size)
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
    headers = {"Idempotency-Key": "k"}
    first, again = (vit.client.post("/v1/transfers", json=good, headers=headers) for _ in range(2))
    assert (ok(first, 202)["id"], first.headers["location"]) == (ok(again)["id"], again.headers["location"])
    other = vit.client.post("/v1/transfers", json=good | {"scales": [2.0]}, headers=headers)
    assert_error(other, 422, "idempotency_conflict", "idempotency-key")
