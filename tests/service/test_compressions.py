"""From files to a served delta, and what is refused before a job is made of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tests import pico
from tests.service.compressing import compressed, put_blob, put_folder, work
from tests.service.serving import Serve, Served, assert_error, ok

from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Options, compress
from patchbay.compress.options import ScoreName
from patchbay_server.jobs.base import lease_of
from patchbay_server.jobs.files import lay_out, lay_out_calibration
from patchbay_server.schemas import CompressionRequest

IMAGE = {"array": [[[0.1] * 16] * 16] * 3}
ABSENT = f"sha256:{'0' * 64}"
DENSITY = 0.3


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve("vit")


@pytest.fixture
def tuned(finetune_folder: Callable[..., Path]) -> Path:
    return finetune_folder("vit", 1, scale=0.05)


@pytest.fixture
def body(served: Served, tuned: Path) -> dict[str, Any]:
    return {"name": "math", "files": put_folder(served, tuned), "density": DENSITY}


def test_it_ends_with_the_delta_that_the_command_line_makes(
    served: Served, body: dict[str, Any], tuned: Path, tmp_path: Path
) -> None:
    job = compressed(served, body)
    assert (job["state"], job["error"]) == ("done", None), job["error"]
    named = pico.rewrite(tuned, tmp_path / "math", lambda tensors: tensors)  # the file says what it was made of
    compress(served.backbone.folder, named, tmp_path / "local.safetensors", Options(density=DENSITY))
    record = job["result"]["delta"]
    assert (record["name"], record["version"], record["current"]) == ("math", 1, True)
    remote = served.get("/v1/deltas/math/file").content
    assert remote == (tmp_path / "local.safetensors").read_bytes()
    assert job["result"]["report"]["num_bytes"] == len(remote)
    assert record["summary"]["density"] == DENSITY
    served.upload("same", tmp_path / "local.safetensors")
    assert served.classify("math", IMAGE) == served.classify("same", IMAGE)


def test_the_temporary_folder_is_gone(served: Served, body: dict[str, Any]) -> None:
    before = served.files()
    compressed(served, body)
    [delta] = served.files() - before
    assert delta.startswith("blobs/sha256/")
    assert not [path for path in (served.store / "blobs" / "tmp").glob("*/*") if path.name != ".lock"]


def test_staged_and_again(served: Served, body: dict[str, Any]) -> None:
    served_now = compressed(served, body)["result"]["delta"]
    again = compressed(served, body)["result"]["delta"]
    assert again == served_now
    staged = compressed(served, body | {"density": 0.1, "activate": False})["result"]["delta"]
    assert (staged["version"], staged["current"]) == (2, False)
    assert ok(served.get("/v1/deltas/math"))["version"] == 1


def test_a_new_head_on_a_plain_encoder(
    serve: Serve, model_folder: Callable[..., Path], finetune_folder: Callable[..., Path]
) -> None:
    served = serve("bert_encoder")
    job = compressed(served, {"name": "sorter", "files": put_folder(served, finetune_folder("bert_classifier"))})
    assert job["state"] == "done", job["error"]
    assert job["result"]["delta"]["summary"]["own_head"] is True
    assert set(served.classify("sorter", "the cat")[0]["probabilities"]) == set(pico.LABELS)


@pytest.fixture
def search(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """A request whose weights are searched for on calibration inputs."""
    npy = io.BytesIO()
    np.save(npy, np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32))
    calibration = put_blob(served, npy.getvalue())
    return body | {"calibration": calibration, "evaluations": 8, "groups": 3, "density": 0.2}


@pytest.mark.parametrize("known", [1, 5])
def test_a_search_that_was_cut_off_ends_in_the_identical_delta(
    served: Served, search: dict[str, Any], known: int
) -> None:
    queue = served.app.state.queue
    whole = compressed(served, search)
    assert whole["state"] == "done", whole["error"]
    evaluations = queue.evaluations(whole["id"])
    assert len(evaluations) == whole["progress"]["evaluation"] > 5
    assert whole["progress"]["evaluations"] == 8
    assert whole["progress"]["best_score"] == max(e["score"] for e in evaluations)

    again = ok(served.post("/v1/compressions", search), 202)["id"]
    lease = lease_of(queue.claim("ann", 30.0))
    for number, evaluation in enumerate(evaluations[:known]):
        queue.add_evaluation(lease, number, evaluation)
    queue.expire("ann")
    assert work(served) == 1
    resumed = ok(served.get(f"/v1/jobs/{again}"))
    assert queue.evaluations(again) == evaluations
    assert resumed["result"]["delta"] == whole["result"]["delta"] and resumed["attempt"] == 2
    assert len(ok(served.get("/v1/deltas/math"))["versions"]) == 1


def put_labels(served: Served, *labels: str) -> str:
    return put_blob(served, "".join(f"{label}\n" for label in labels).encode())


@pytest.mark.parametrize("name", ["inputs", "delta.safetensors", "finetuned"])
def test_a_name_may_be_that_of_a_file_of_ours(served: Served, search: dict[str, Any], name: str) -> None:
    job = compressed(served, search | {"name": name, "evaluations": 0})
    assert (job["state"], job["error"]) == ("done", None)
    assert job["result"]["delta"]["name"] == name


@pytest.mark.parametrize("score", ["accuracy", "balanced_accuracy", "log_likelihood"])
def test_labels_end_with_the_delta_that_the_command_line_makes(
    served: Served, search: dict[str, Any], tuned: Path, tmp_path: Path, score: ScoreName
) -> None:
    calibration, labels = tmp_path / "images.npy", tmp_path / "labels.txt"
    calibration.write_bytes(served.hub.open_blob(search["calibration"]).read_bytes())
    labels.write_text("cat\ndog\ncat\ndog\n")
    job = compressed(served, search | {"labels": put_blob(served, labels.read_bytes()), "score": score})
    assert job["state"] == "done", job["error"]
    named = pico.rewrite(tuned, tmp_path / "math", lambda tensors: tensors)
    options = Options(density=0.2, groups=3, evaluations=8, score=score)
    out = tmp_path / "local.safetensors"
    report = compress(served.backbone.folder, named, out, options, calibration=Calibration.read(calibration, labels))
    assert served.get("/v1/deltas/math/file").content == out.read_bytes()
    assert job["result"]["report"]["score"] == report.score == job["progress"]["best_score"]


@pytest.mark.parametrize("labels", [("cat",), ("cat", "dog", "cat", "horse")])
def test_labels_that_do_not_match(served: Served, search: dict[str, Any], labels: tuple[str, ...]) -> None:
    job = compressed(served, search | {"labels": put_labels(served, *labels), "score": "accuracy"})
    assert (job["state"], job["error"]["code"], job["error"]["param"]) == ("failed", "invalid_input", "labels")


@pytest.mark.parametrize(
    ("change", "left_out", "code", "param"),
    [
        ({"score": "accuracy"}, "calibration", "invalid_input", "labels"),
        ({"score": "accuracy"}, "labels", "invalid_input", "labels"),
        ({"score": "kl"}, None, "invalid_input", "score"),
        ({}, None, "invalid_input", "score"),
        ({"score": "f1"}, None, "invalid_recipe", "score"),
        ({"score": "accuracy", "labels": ABSENT}, None, "not_found", "labels"),
        ({"score": "accuracy", "labels": "labels.txt"}, None, "invalid_request", "labels"),
    ],
)
def test_labels_that_go_with_nothing_are_refused_at_once(
    served: Served, search: dict[str, Any], change: dict[str, Any], left_out: str | None, code: str, param: str
) -> None:
    asked = search | {"labels": put_labels(served, *"abcd")} | change
    asked.pop(left_out or "", None)
    assert_error(served.post("/v1/compressions", asked), 404 if code == "not_found" else 422, code, param)
    assert ok(served.get("/v1/jobs"))["data"] == []


def test_calibration_inputs_that_do_not_suit_the_model(served: Served, search: dict[str, Any]) -> None:
    job = compressed(served, search | {"calibration": put_blob(served, b"a line of text\n")})
    assert job["state"] == "failed" and job["error"]["type"] == "invalid_request_error"


def test_a_fine_tune_of_something_else_fails_by_name(served: Served, finetune_folder: Callable[..., Path]) -> None:
    job = compressed(served, {"name": "math", "files": put_folder(served, finetune_folder("bert_classifier"))})
    assert (job["state"], job["result"]) == ("failed", None)
    assert (job["error"]["code"], job["error"]["type"]) == ("finetune_mismatch", "invalid_request_error")
    assert_error(served.get("/v1/deltas/math"), 404, "not_found", "name")


def test_damaged_weights_fail_and_the_next_job_does_not(served: Served, body: dict[str, Any]) -> None:
    damaged = {**body["files"], "model.safetensors": put_blob(served, b"\xff" * 100)}
    job = compressed(served, body | {"files": damaged})
    assert job["state"] == "failed" and job["error"]["code"] == "unsupported_backbone"
    assert compressed(served, body)["state"] == "done"


def test_a_name_that_a_merge_takes_meanwhile(
    served: Served, body: dict[str, Any], delta_file: Callable[..., Path]
) -> None:
    served.upload("code", delta_file("vit", 2))
    key = {"Idempotency-Key": "k"}
    job = ok(served.post("/v1/compressions", body, headers=key), 202)
    ok(served.post("/v1/merges", {"name": "math", "recipe": "0.5*code"}), 201)
    # What is checked of a new request is not held against a job that is there.
    assert ok(served.post("/v1/compressions", body, headers=key))["id"] == job["id"]
    files = served.files()
    assert work(served) == 1
    assert ok(served.get(f"/v1/jobs/{job['id']}"))["error"]["code"] == "name_taken"
    assert served.files() == files
    assert_error(served.post("/v1/compressions", body), 409, "name_taken", "name")


def test_a_worker_with_another_base_refuses(served: Served, body: dict[str, Any]) -> None:
    queue = served.app.state.queue
    ok(served.post("/v1/compressions", body), 202)
    spec = queue.list_jobs("default", 1)[0].spec
    job, _ = queue.submit("default", "compression", {**spec, "fingerprint": ABSENT})
    assert work(served) == 2
    assert queue.get("default", job.id).error["code"] == "wrong_base"


@pytest.mark.parametrize(
    ("filename", "status", "code", "words"),
    [
        ("pytorch_model.bin", 415, "unsupported_file", "safetensors"),
        ("weights.PT", 415, "unsupported_file", "safetensors"),
        ("args.pkl", 415, "unsupported_file", "safetensors"),
        ("../evil.json", 422, "invalid_input", "plain file name"),
        ("/etc/passwd.txt", 422, "invalid_input", "plain file name"),
        ("sub/config.json", 422, "invalid_input", "plain file name"),
        ("sub\\config.json", 422, "invalid_input", "plain file name"),
        (".hidden.json", 422, "invalid_input", "plain file name"),
        ("..", 422, "invalid_input", "plain file name"),
        ("nul\x00.json", 422, "invalid_input", "plain file name"),
        ("line\n.json", 422, "invalid_input", "plain file name"),
        ("config.json\n", 422, "invalid_input", "plain file name"),
        ("\u2024json", 422, "invalid_input", "plain file name"),
        ("x" * 300 + ".json", 422, "invalid_input", "plain file name"),
        ("", 422, "invalid_input", "plain file name"),
        ("json", 422, "invalid_input", "none of a model's files"),
        ("modeling.py", 422, "invalid_input", "none of a model's files"),
        ("run.JSON", 422, "invalid_input", "none of a model's files"),
    ],
)
def test_hostile_filenames(
    served: Served, body: dict[str, Any], filename: str, status: int, code: str, words: str
) -> None:
    files = {**body["files"], filename: body["files"]["config.json"]}
    assert words in assert_error(served.post("/v1/compressions", body | {"files": files}), status, code, "files")
    assert ok(served.get("/v1/jobs"))["data"] == []


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_what_is_no_model(served: Served, body: dict[str, Any], missing: str) -> None:
    files = {name: digest for name, digest in body["files"].items() if name != missing}
    message = assert_error(served.post("/v1/compressions", body | {"files": files}), 422, "invalid_input", "files")
    assert missing.removeprefix("model") in message


def test_a_blob_that_is_not_there(served: Served, body: dict[str, Any]) -> None:
    files = {**body["files"], "merges.txt": ABSENT, "vocab.txt": ABSENT}
    response = served.post("/v1/compressions", body | {"files": files})
    assert ABSENT in assert_error(response, 404, "not_found", "files.merges.txt")
    assert ok(served.get("/v1/jobs"))["data"] == []


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"name": "Not A Name"}, "invalid_name", "name"),
        ({"name": "linear"}, "invalid_name", "name"),
        ({"files": {}}, "invalid_request", "files"),
        ({"files": {"config.json": "sha256:zz"}}, "invalid_request", "files"),
        ({"density": 2.0}, "invalid_recipe", "density"),
        ({"method": "magic"}, "invalid_recipe", "method"),
        ({"target_kl": 0.1}, "invalid_recipe", "target_kl"),
        ({"density": None, "target_kl": 0.1}, "invalid_recipe", "target_kl"),
        ({"method": "scaled_magnitude"}, "invalid_recipe", "method"),
        ({"target_size": 1000}, "invalid_recipe", "target_size"),
        ({"target_size": 0}, "invalid_request", "target_size"),
        ({"seed": -1}, "invalid_request", "seed"),
        ({"color": "red"}, "invalid_request", "color"),
    ],
)
def test_bad_requests_are_refused_at_once(
    served: Served, body: dict[str, Any], change: dict[str, Any], code: str, param: str
) -> None:
    assert_error(served.post("/v1/compressions", body | change), 422, code, param)
    assert ok(served.get("/v1/jobs"))["data"] == []


def test_every_option_of_the_library_and_no_other() -> None:
    ours = {"name", "files", "calibration", "labels", "activate"}
    assert CompressionRequest.model_fields.keys() - ours == {field.name for field in fields(Options)}


def test_idempotency(served: Served, body: dict[str, Any]) -> None:
    def post(key: str, content: dict[str, Any]) -> Any:
        return served.client.post("/v1/compressions", json=content, headers={"Idempotency-Key": key})

    first = post("k-1", body)
    job = ok(first, 202)
    assert first.headers["location"] == f"/v1/jobs/{job['id']}"
    shuffled = dict(reversed(body.items())) | {"files": dict(reversed(body["files"].items()))}
    again = post("k-1", shuffled)
    assert ok(again)["id"] == job["id"] and again.headers["location"] == first.headers["location"]
    assert_error(post("k-1", body | {"density": 0.2}), 422, "idempotency_conflict", "idempotency-key")
    assert_error(post("k-3", body | {"density": 2.0}), 422, "invalid_recipe", "density")
    assert ok(post("k-3", body | {"density": 0.25}), 202)["state"] == "queued"  # a refusal has not used the key up
    assert ok(post("k-2", body), 202)["id"] != job["id"]
    assert work(served) == 3
    assert ok(post("k-1", body))["state"] == "done"
    assert_error(post("x" * 256, body), 422, "invalid_request", "Idempotency-Key")
    assert len(ok(served.get("/v1/jobs"))["data"]) == 3


def test_laid_out_files_are_the_blobs(served: Served, body: dict[str, Any], tuned: Path, tmp_path: Path) -> None:
    folder = lay_out(served.hub, body["files"], served.hub.blobs.new_folder() / "math")
    for name, digest in body["files"].items():
        assert (folder / name).samefile(served.hub.open_blob(digest))
        assert (folder / name).read_bytes() == (tuned / name).read_bytes()
    npy = io.BytesIO()
    np.save(npy, np.zeros((2, 3)))
    tensor = save({"inputs": torch.zeros(2, 3)})
    texts = [(b"the cat\n", ".txt"), (b"abcdefgh{\n", ".txt"), (b"", ".txt")]
    for data, suffix in [(npy.getvalue(), ".npy"), (tensor, ".safetensors"), *texts]:
        file = lay_out_calibration(served.hub, put_blob(served, data), served.hub.blobs.new_folder())
        assert (file.suffix, file.read_bytes()) == (suffix, data)
