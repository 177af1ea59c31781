"""Which routes ask for a key. The list is the app's own, so that a new route cannot be forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from starlette.types import Message
from tests.service.serving import Served, assert_error, serving

from patchbay.backbone import Backbone

KEY = "a-key-of-twenty-signs"
OPEN = {"/healthz", "/readyz", "/openapi.json"}
WRONG = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer wrong"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY.upper()}"},
    {"authorization": f"Basic {KEY}"},
    {"authorization": KEY},
    {"authorization": b"Bearer \xff\xfe"},
    {"x-api-key": KEY},
]


@pytest.fixture(scope="module")
def served(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    backbone = Backbone.load(model_folder("vit"))
    with serving(backbone, tmp_path_factory.mktemp("store"), api_key=KEY) as served:
        yield served


def routes(served: Served) -> list[tuple[str, str]]:
    paths = served.app.openapi()["paths"]
    found = [(method.upper(), re.sub(r"\{.*?\}", "x", path)) for path in paths for method in paths[path]]
    return [*found, ("GET", "/openapi.json")]


def test_without_the_right_key_only_the_open_routes_answer(served: Served) -> None:
    assert len(routes(served)) > 15
    for method, path in routes(served):
        for headers in WRONG:
            response = served.client.request(method, path, headers=headers)
            if path in OPEN:
                assert response.status_code == 200
            elif method == "HEAD":
                assert response.status_code == 401  # it has no body
            else:
                message = assert_error(response, 401, "unauthorized", "authorization")
                assert response.headers["www-authenticate"] == "Bearer"
                assert KEY not in message


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer   {KEY} "])
def test_with_the_key_everything_answers(served: Served, header: str) -> None:
    for method, path in routes(served):
        response = served.client.request(method, path, headers={"authorization": header})
        assert response.status_code in (200, 404, 422), (method, path, response.text)


def test_nothing_is_read_or_kept_without_the_key(served: Served) -> None:
    before = served.files()
    assert_error(served.send("new", iter([b"x"])), 401, "unauthorized", "authorization")
    assert served.files() == before


def test_no_byte_of_a_body_is_asked_for_without_the_key(served: Served) -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": [], "query_string": b""}
    anyio.run(served.app, scope, receive, send)
    assert sent[0]["status"] == 401


def test_without_a_key_configured_none_is_asked_for(vit: Served) -> None:
    assert vit.get("/v1/models").status_code == 200
    assert vit.get("/v1/models", headers={"authorization": "Bearer anything"}).status_code == 200


def test_the_key_is_in_no_description_of_the_settings(served: Served) -> None:
    settings = served.app.state.settings
    assert KEY not in repr(settings) and KEY not in settings.model_dump_json()
