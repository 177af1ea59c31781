from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.service.serving import Served

from patchbay_server.replicas.asked import Asked, asked, deltas_of
from patchbay_server.residents import resident

JSON = "application/json"
COMPLETE = "/v1/completions"


def of_json(body: object) -> Asked | None:
    return asked(COMPLETE, JSON, json.dumps(body).encode())


def test_json_names_a_model_a_patch_or_a_recipe() -> None:
    recipe = {"method": "linear", "terms": [{"delta": "math"}]}
    assert of_json({"model": "0.5*math", "prompt": "x"}) == Asked("0.5*math")
    assert of_json({"model": "base", "patch": recipe}) == Asked("base", recipe)
    assert of_json({"recipe": "math + code"}) == Asked("math + code")
    assert of_json({"recipe": recipe}) == Asked("base", recipe)


def test_a_form_names_it_in_its_json_part() -> None:
    request = b'--xyz\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"model": "eyes"}\r\n'
    file = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"model": "not me"}\r\n'
    for body in (request + file, file + request):
        assert asked("/v1/eeg/classify", 'multipart/form-data; boundary="xyz"', body + b"--xyz--\r\n") == Asked("eyes")
    assert asked("/v1/eeg/classify", "multipart/form-data", request + file) is None


def test_a_path_names_a_delta() -> None:
    for path in ("/v1/deltas/math@2", "/v1/deltas/math@2/pin"):
        assert asked(path, "", b"") == Asked("math@2")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"model": 1}', b"[1]", b"\xff\xfe\x00", b'{"x": ' + b"9" * 5000 + b"}"]
)
def test_what_cannot_be_read_names_nothing(body: bytes) -> None:
    assert asked(COMPLETE, JSON, body) is None
    assert asked(COMPLETE, "multipart/form-data; boundary=", body) is None


@given(
    st.binary(), st.sampled_from([JSON, "multipart/form-data; boundary=a", "multipart/form-data; boundary=\xff", ""])
)
def test_nothing_breaks_it(body: bytes, kind: str) -> None:
    asked(COMPLETE, kind, body)


def test_a_model_is_the_deltas_that_it_is_made_of_now(vit: Served, tmp_path: Path) -> None:
    base = vit.backbone.name
    math, code = (vit.hub.catalog.get_delta("default", name).digest for name in ("math", "code"))
    vit.post("/v1/merges", {"name": "both", "recipe": "math + code"})
    two = frozenset({resident("default", math), resident("default", code)})
    for named in (
        Asked("0.3*math + code"),
        Asked("both"),
        Asked(base, {"method": "linear", "terms": [{"delta": "math"}, {"delta": "code@1"}]}),
    ):
        assert deltas_of(vit.hub, "default", base, named) == two
    assert deltas_of(vit.hub, "default", base, Asked("math")) == {resident("default", math)}
    for nothing in (Asked("base"), Asked(base), Asked("lost"), Asked("math +"), Asked("base", {"terms": 1})):
        assert deltas_of(vit.hub, "default", base, nothing) == frozenset()
    assert deltas_of(vit.hub, "others", base, Asked("math")) == frozenset(), "another tenant's names are not seen"
