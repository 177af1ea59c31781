"""Uploading, listing, switching and deleting, over the embedded catalog and over Redis."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.service.serving import Serve, Served, assert_error, edited, ok, serving
from tests.store.backends import new_store

from patchbay.backbone import Backbone
from patchbay.delta import DeltaFile

Files = Callable[[int], Path]


@pytest.fixture
def files(delta_file: Callable[..., Path]) -> Files:
    """Three different deltas of one base: `files(1)`, `files(2)`, `files(3)`."""
    return lambda seed: delta_file("vit", seed)


@pytest.fixture(params=["sqlite", "fakeredis"])
def served(request: pytest.FixtureRequest, backbone: Callable[[str], Backbone], tmp_path: Path) -> Iterator[Served]:
    with new_store(request.param, None) as store, serving(backbone("vit"), tmp_path / "store", store()) as served:
        yield served


def numbers(served: Served, name: str) -> list[tuple[int, bool]]:
    """(version, current) of every version, oldest first."""
    return [(v["version"], v["current"]) for v in ok(served.get(f"/v1/deltas/{name}"))["versions"]]


def test_a_record(served: Served, files: Files) -> None:
    before = time.time()
    record = served.upload("math", files(1))
    data = files(1).read_bytes()
    manifest = DeltaFile.open(files(1)).manifest
    assert before <= record["created_at"] <= time.time()
    assert record == {
        "name": "math",
        "version": 1,
        "current": True,
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
        "created_at": record["created_at"],
        "summary": {
            "method": "magnitude",
            "density": 0.3,
            "bits_per_parameter": 8 * len(data) / served.backbone.num_parameters,
            "ratio": manifest.provenance.original_bytes / len(data),
            "relative_error": manifest.statistics.relative_error,
            "labels": ["cat", "dog", "owl"],
            "own_head": False,
            "finetuned": manifest.provenance.finetuned,
            "base": manifest.base.fingerprint,
        },
        "pinned": False,
        "resident_bytes": None,
    }
    assert ok(served.get("/v1/deltas")) == {"data": [record]}
    assert ok(served.get("/v1/deltas/math")) == {**record, "versions": [record]}
    assert ok(served.get("/v1/deltas/math@1")) == {**record, "versions": [record]}


def test_the_file_comes_back_as_it_was_sent(served: Served, files: Files) -> None:
    record = served.upload("math", files(1))
    served.upload("math", files(2))
    response = served.get("/v1/deltas/math@1/file")
    assert (response.status_code, response.content) == (200, files(1).read_bytes())
    assert response.headers["etag"] == f'"{record["digest"]}"'
    assert response.headers["content-type"] == "application/octet-stream"
    assert "math-1.safetensors" in response.headers["content-disposition"]
    assert served.get("/v1/deltas/math/file").content == files(2).read_bytes()


def test_every_upload_is_a_new_version_and_the_newest_is_current(served: Served, files: Files) -> None:
    assert [served.upload("math", files(seed))["version"] for seed in (1, 2, 3)] == [1, 2, 3]
    assert numbers(served, "math") == [(1, False), (2, False), (3, True)]
    [listed] = ok(served.get("/v1/deltas"))["data"]
    assert (listed["name"], listed["version"]) == ("math", 3)


def test_the_same_bytes_again_are_no_new_version(served: Served, files: Files) -> None:
    first = served.upload("math", files(1))
    assert ok(served.send("math", files(1))) == first
    second = served.upload("math", files(2))
    assert ok(served.send("math", files(1))) == {**first, "current": False}
    assert ok(served.send("math", files(2))) == second
    assert numbers(served, "math") == [(1, False), (2, True)]


def test_the_same_bytes_under_another_name_are_stored_once(served: Served, files: Files) -> None:
    first, other = served.upload("math", files(1)), served.upload("code", files(1))
    assert first["digest"] == other["digest"]
    assert len(served.files()) == 1


def test_staging_does_not_switch(served: Served, files: Files) -> None:
    served.upload("math", files(1))
    staged = served.upload("math", files(2), activate="false")
    assert (staged["version"], staged["current"]) == (2, False)
    assert numbers(served, "math") == [(1, True), (2, False)]
    assert ok(served.put("/v1/deltas/math/current", {"version": 2})) == {**staged, "current": True}
    assert numbers(served, "math") == [(1, False), (2, True)]


def test_a_name_of_which_nothing_is_current(served: Served, files: Files) -> None:
    served.upload("math", files(1), activate="false")
    assert_error(served.get("/v1/deltas/math"), 404, "not_found", "version")
    assert ok(served.get("/v1/deltas/math@1"))["current"] is False
    assert [(d["name"], d["version"], d["current"]) for d in ok(served.get("/v1/deltas"))["data"]] == [
        ("math", 1, False)
    ]


def test_rollback(served: Served, files: Files) -> None:
    for seed in (1, 2):
        served.upload("math", files(seed))
    back = ok(served.put("/v1/deltas/math/current", {"version": 1}))
    assert (back["version"], back["current"]) == (1, True)
    assert served.get("/v1/deltas/math/file").content == files(1).read_bytes()
    assert ok(served.put("/v1/deltas/math/current", {"version": 2, "expected": 1}))["version"] == 2


def test_rollback_that_somebody_else_was_faster_with(served: Served, files: Files) -> None:
    for seed in (1, 2, 3):
        served.upload("math", files(seed))
    message = assert_error(
        served.put("/v1/deltas/math/current", {"version": 1, "expected": 2}), 409, "version_conflict", "expected"
    )
    assert "version 3" in message
    assert numbers(served, "math") == [(1, False), (2, False), (3, True)]


@pytest.mark.parametrize(
    ("name", "body", "status", "code", "param"),
    [
        ("math", {"version": 9}, 404, "not_found", "version"),
        ("math", {"version": 10**30}, 404, "not_found", "version"),
        ("math", {"version": 1, "expected": 10**30}, 409, "version_conflict", "expected"),
        ("mat", {"version": 1}, 404, "not_found", "name"),
        ("math@1", {"version": 1}, 404, "not_found", "name"),
        ("math", {"version": 0}, 422, "invalid_request", "version"),
        ("math", {"version": "one"}, 422, "invalid_request", "version"),
        ("math", {}, 422, "invalid_request", "version"),
        ("math", {"version": 1, "force": True}, 422, "invalid_request", "force"),
    ],
)
def test_rollbacks_that_cannot_be(
    served: Served, files: Files, name: str, body: dict[str, object], status: int, code: str, param: str
) -> None:
    served.upload("math", files(1))
    assert_error(served.put(f"/v1/deltas/{name}/current", body), status, code, param)
    assert numbers(served, "math") == [(1, True)]


def test_deleting_a_name(served: Served, files: Files) -> None:
    records = [served.upload("math", files(seed)) for seed in (1, 2)]
    assert ok(served.delete("/v1/deltas/math")) == {"deleted": [{**records[0], "current": False}, records[1]]}
    assert ok(served.get("/v1/deltas")) == {"data": []}
    assert_error(served.get("/v1/deltas/math"), 404, "not_found", "name")
    assert_error(served.get("/v1/deltas/math@1"), 404, "not_found", "name")
    assert_error(served.delete("/v1/deltas/math"), 404, "not_found", "name")


def test_deleting_a_version(served: Served, files: Files) -> None:
    first = served.upload("math", files(1))
    served.upload("math", files(2))
    assert_error(served.delete("/v1/deltas/math@2"), 409, "version_conflict", "version")
    assert ok(served.delete("/v1/deltas/math@1")) == {"deleted": [{**first, "current": False}]}
    assert_error(served.get("/v1/deltas/math@1"), 404, "not_found", "version")
    assert_error(served.delete("/v1/deltas/math@1"), 404, "not_found", "version")
    assert numbers(served, "math") == [(2, True)]


def test_numbers_are_never_used_again(served: Served, files: Files) -> None:
    served.upload("math", files(1))
    served.upload("math", files(2))
    served.delete("/v1/deltas/math")
    assert served.upload("math", files(1))["version"] == 3
    assert numbers(served, "math") == [(3, True)]


@pytest.mark.parametrize("text", ["0", "01", "x", "1.0", "-1", "9" * 10, "1@1", "%20"])
def test_versions_that_are_no_numbers(served: Served, files: Files, text: str) -> None:
    served.upload("math", files(1))
    assert_error(served.get(f"/v1/deltas/math@{text}"), 404, "not_found", "version")
    assert_error(served.get(f"/v1/deltas/math@{text}/file"), 404, "not_found", "version")
    assert_error(served.delete(f"/v1/deltas/math@{text}"), 404, "not_found", "version")


@pytest.mark.parametrize("name", ["mat", "Math", "..%2f..%2fetc", "%00", "a" * 300, "maht"])
def test_names_that_are_not_there(served: Served, files: Files, name: str) -> None:
    served.upload("math", files(1))
    for response in (served.get(f"/v1/deltas/{name}"), served.delete(f"/v1/deltas/{name}")):
        assert response.status_code == 404
        assert response.json()["error"]["code"] in ("not_found", "unknown_route")  # a slash is a path of its own


def test_close_names_are_listed(served: Served, files: Files) -> None:
    served.upload("math", files(1))
    served.upload("poetry", files(2))
    message = assert_error(served.get("/v1/deltas/maht"), 404, "not_found", "name")
    assert message == "there is no delta 'maht'; close names: math"


@pytest.mark.parametrize("name", ["Math", "", "a b", "-a", "a" * 64, "ä", "math@1", "a/b", "base", "linear"])
def test_names_that_cannot_be_given(served: Served, files: Files, name: str) -> None:
    assert_error(served.send(name, files(1)), 422, "invalid_name", "name")
    assert served.files() == set()


def test_the_base_keeps_its_name(served: Served, files: Files) -> None:
    message = assert_error(served.send(served.backbone.name, files(1)), 422, "invalid_name", "name")
    assert "reserved" in message


def test_parameters_of_an_upload(served: Served, files: Files) -> None:
    content = files(1).read_bytes()
    assert_error(served.client.post("/v1/deltas", content=content), 422, "invalid_request", "name")
    assert_error(served.send("a" * 201, content), 422, "invalid_request", "name")
    assert_error(served.send("math", content, activate="maybe"), 422, "invalid_request", "activate")
    assert served.files() == set()


def test_a_name_that_a_merge_has(served: Served, files: Files) -> None:
    served.upload("math", files(1))
    ok(served.post("/v1/merges", {"name": "both", "recipe": "0.5*math"}), 201)
    before = served.files()
    message = assert_error(served.send("both", files(2)), 409, "name_taken", "name")
    assert "belongs to a merge" in message
    assert served.files() == before


def test_a_new_version_answers_at_once(served: Served, files: Files) -> None:
    image = {"array": [[[0.1] * 16] * 16] * 3}
    served.upload("math", files(1))
    first = served.classify("math", image)
    served.upload("math", files(2))
    assert served.classify("math", image) != first
    assert served.classify("math@1", image) == first
    served.put("/v1/deltas/math/current", {"version": 1})
    assert served.classify("math", image) == first


def test_models_lists_everything_that_can_be_asked_for(served: Served, files: Files) -> None:
    record = served.upload("math", files(1))
    merge = ok(served.post("/v1/merges", {"name": "half", "recipe": "0.5*math"}), 201)
    base = served.backbone.name
    math = {"id": "math", "object": "model", "created": int(record["created_at"]), "owned_by": "patchbay"}
    math |= {"parent": base, "kind": "delta"}
    assert ok(served.get("/v1/models")) == {
        "object": "list",
        "data": [
            {**math, "id": base, "created": 0, "parent": None, "kind": "base"},
            math,
            {**math, "id": "half", "created": int(merge["created_at"]), "kind": "merge"},
        ],
    }
    assert ok(served.get("/v1/models/math")) == math
    assert ok(served.get("/v1/models/math@1")) == {**math, "id": "math@1"}
    assert served.get("/v1/models/math@9").status_code == 404
    message = assert_error(served.get("/v1/models/maht"), 404, "not_found", "model")
    assert message.endswith("close names: math")
    assert_error(served.get("/v1/models/0.5*math"), 404, "not_found", "model")


def test_what_the_manifest_says_of_the_size_is_only_shown(serve: Serve, files: Files) -> None:
    """The ratio comes from a number in the file; a lie there may not break the listing."""

    def lie(manifest: dict[str, dict[str, int]]) -> None:
        manifest["provenance"]["original_bytes"] = 2**48

    served = serve("vit")
    record = served.upload("math", edited(files(1), lie))
    assert record["summary"]["ratio"] == 2**48 / record["size"]
