"""JSON bodies as they are read: strictly, before any route looks at them."""

from __future__ import annotations

import pytest
from tests.service.serving import Served, assert_error, ok

JSON = {"content-type": "application/json"}
IMAGE = '{"array": [[[0.1]]]}'
BLOB = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("path", "text", "twice"),
    [
        ("/v1/merges", '{"name": "a", "name": "b", "recipe": "math"}', "name"),
        ("/v1/merges", '{"name": "a", "recipe": {"terms": [{"delta": "math", "weight": 1, "weight": 2}]}}', "weight"),
        ("/v1/merges:preview", '{"recipe": {"terms": [{"delta": "math"}], "scale": 1, "scale": 1}}', "scale"),
        ("/v1/classify", f'{{"model": "base", "input": {IMAGE}, "model": "math"}}', "model"),
        (
            "/v1/classify",
            f'{{"model": "base", "input": {IMAGE}, "patch": {{"terms": [{{"delta": "math"}}], '
            '"method": "ties", "params": {"seed": 1, "\\u0073eed": 2}}}',
            "seed",
        ),
        ("/v1/embeddings", '{"model": "base", "input": "a", "input": "b"}', "input"),
        ("/v1/completions", '{"model": "base", "prompt": "a", "prompt": "b"}', "prompt"),
        ("/v1/compressions", f'{{"name": "a", "files": {{"x": "{BLOB}", "x": "{BLOB}"}}}}', "x"),
        ("/v1/transfers", f'{{"model": "math", "scales": [1], "scales": [2], "calibration": "{BLOB}"}}', "scales"),
    ],
)
def test_a_key_that_is_given_twice(vit: Served, path: str, text: str, twice: str) -> None:
    message = assert_error(vit.client.post(path, content=text, headers=JSON), 422, "invalid_request")
    assert message == f"the body is not JSON: '{twice}' is given twice in one object; keep one"
    assert ok(vit.get("/v1/merges"))["data"] == []


@pytest.mark.parametrize("text", ["[" * 100_000, '{"seed": ' + "9" * 5000 + "}"])
def test_what_no_parser_reads(vit: Served, text: str) -> None:
    answer = vit.client.post("/v1/classify", content=text, headers={"content-type": "application/json"})
    assert "nested too deeply" in assert_error(answer, 400, "invalid_request")


def test_a_version_that_is_given_twice(vit: Served) -> None:
    response = vit.client.put("/v1/deltas/math/current", content='{"version": 1, "version": 1}', headers=JSON)
    assert "'version' is given twice" in assert_error(response, 422, "invalid_request")


def test_a_long_key_is_shown_in_part(vit: Served) -> None:
    key = "x" * 10_000
    response = vit.client.post("/v1/merges", content=f'{{"{key}": 1, "{key}": 1}}', headers=JSON)
    assert len(assert_error(response, 422, "invalid_request")) < 300


def test_one_key_in_two_objects(vit: Served) -> None:
    text = '{"name": "a", "recipe": {"terms": [{"delta": "math"}, {"delta": "code"}]}}'
    assert ok(vit.client.post("/v1/merges", content=text, headers=JSON), 201)["expression"] == "math + code"


@pytest.mark.parametrize("value", ["yes", "true", "false", 1, 0, [], {}])
@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/merges", "follow", {"name": "a", "recipe": "math"}),
        ("/v1/completions", "stream", {"model": "base", "prompt": "a"}),
        ("/v1/completions", "echo", {"model": "base", "prompt": "a"}),
        ("/v1/compressions", "exact", {"name": "a", "files": {"x": BLOB}}),
        ("/v1/compressions", "merge_statistics", {"name": "a", "files": {"x": BLOB}}),
        ("/v1/compressions", "distil", {"name": "a", "files": {"x": BLOB}}),
        ("/v1/compressions", "activate", {"name": "a", "files": {"x": BLOB}}),
    ],
)
def test_true_and_false_are_no_words_and_no_numbers(
    vit: Served, path: str, field: str, body: dict[str, object], value: object
) -> None:
    message = assert_error(vit.post(path, {**body, field: value}), 422, "invalid_request", field)
    assert message == f"{field}: Input should be a valid boolean"
    assert ok(vit.get("/v1/merges"))["data"] == []


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/v1/classify", "text/plain", "the body's Content-Type is 'text/plain': send application/json"),
        ("/v1/classify", "application/yaml", "the body's Content-Type is 'application/yaml': send application/json"),
        ("/v1/classify", "text/json; a=b", "the body's Content-Type is 'text/json': send application/json"),
        ("/v1/classify", None, "the body has no Content-Type: send application/json"),
        ("/v1/merges", "text/plain", "... 'text/plain': send application/json or application/yaml"),
        ("/v1/merges", None, "the body has no Content-Type: send application/json or application/yaml"),
        ("/v1/merges:preview", "text/plain", "... 'text/plain': send application/json"),
    ],
)
def test_a_refused_content_type_lists_those_there_are(vit: Served, path: str, kind: str | None, message: str) -> None:
    headers = {} if kind is None else {"content-type": kind}
    found = assert_error(vit.client.post(path, content=b"a: 1", headers=headers), 422, "invalid_request", "body")
    assert found == message.replace("...", "the body's Content-Type is")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.patchbay+json"]
)
def test_json_under_all_its_names(vit: Served, kind: str) -> None:
    text = '{"name": "a", "recipe": "math"}'
    ok(vit.client.post("/v1/merges", content=text, headers={"content-type": kind}), 201)
    message = assert_error(
        vit.client.post("/v1/merges", content=b"[]", headers={"content-type": kind}), 422, "invalid_request", "body"
    )
    assert message.startswith("body: ")
