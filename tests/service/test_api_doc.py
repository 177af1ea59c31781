"""API.md says what is there, all of it, and nothing else. Both sides are read, neither is written down here."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import ProcessCollector
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined
from tests.service.compressing import put_folder, work
from tests.service.eeg import ask, rows
from tests.service.eeg import classifier as classifier_of_eeg
from tests.service.eeg import encoder as encoder_of_eeg
from tests.service.serving import Serve, Served, ok
from tests.service.streaming import talking

import patchbay
import patchbay_server
from patchbay import errors
from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.merge import METHODS, Recipe, Term, parse
from patchbay.models.inputs import MAX_PIXELS
from patchbay_server import answer_schemas, inference_schemas, logs
from patchbay_server.access_log import Access
from patchbay_server.errors import _HTTP_CODES, status_of
from patchbay_server.logs import About
from patchbay_server.schemas import MAX_INPUTS, ArrayItem, ImageItem
from patchbay_server.settings import Settings

TEXT = (Path(patchbay_server.__file__).parent.parent / "API.md").read_text("utf-8")
SOURCES = "".join(
    path.read_text("utf-8")
    for package in (patchbay, patchbay_server)
    for path in Path(package.__file__).parent.rglob("*.py")
)
DATA = ("probabilities", "params", "files", "report", "dropped", "positions_mm")
IMAGE = {"array": [[[0.1] * 16] * 16] * 3}


def section(heading: str) -> str:
    """What is under a heading, up to the next one of its kind."""
    level = heading.partition(" ")[0]
    start = TEXT.index(f"\n{heading}\n") + len(heading) + 2
    after = re.search(rf"^#{{2,{len(level)}}} ", TEXT[start:], re.MULTILINE)
    return TEXT[start : start + after.start()] if after else TEXT[start:]


def table(text: str, header: str) -> dict[str, list[str]]:
    """First cells (without backticks) -> the other cells of the table whose header starts so."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {header} |"):
            break
    else:
        return {}
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        first, *others = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not set(first) <= {"-"}:
            assert first not in rows, f"{first} is there twice"
            rows[first] = others
    return {name.strip("`"): others for name, others in rows.items()}


def documented_routes() -> list[tuple[str, str]]:
    return re.findall(r"^### `([A-Z]+) (/\S*)`$", TEXT, re.MULTILINE)


def real_routes(app: Any) -> dict[tuple[str, str], dict[str, Any]]:
    paths = app.openapi()["paths"]
    return {(method.upper(), path): route for path, found in paths.items() for method, route in found.items()}


def fields_of(app: Any, route: dict[str, Any]) -> set[str]:
    """Fields of the JSON body, and parameters of the query."""
    names = {p["name"] for p in route.get("parameters", ()) if p["in"] == "query"}
    schema = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if schema:
        name = schema["$ref"].rpartition("/")[2]
        names |= set(app.openapi()["components"]["schemas"][name]["properties"])
    return names


def test_every_route_and_no_other(vit: Served) -> None:
    documented = documented_routes()
    assert len(documented) == len(set(documented))
    assert set(documented) == set(real_routes(vit.app))


def test_every_field_of_a_route_and_no_other(vit: Served) -> None:
    for (method, path), route in real_routes(vit.app).items():
        text = section(f"### `{method} {path}`")
        documented = table(text, "field").keys() | table(text, "parameter").keys()
        assert documented == fields_of(vit.app, route), (method, path)


def test_defaults_of_fields(vit: Served) -> None:
    schemas = vit.app.openapi()["components"]["schemas"]
    for (method, path), route in real_routes(vit.app).items():
        body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if not body:
            continue
        schema = schemas[body["$ref"].rpartition("/")[2]]
        for name, (_, default, _) in table(section(f"### `{method} {path}`"), "field").items():
            assert (default == "required") == (name in schema["required"]), (path, name)
            real = schema["properties"][name].get("default")
            if default not in ("required", "none"):
                assert json.dumps(real).strip('"') in (default.strip("`"), f"{default}.0"), (path, name)


def test_recipes_and_items() -> None:
    assert table(TEXT, "recipe field").keys() == Recipe.model_fields.keys() | Term.model_fields.keys()
    assert table(TEXT, "item field").keys() == ImageItem.model_fields.keys() | ArrayItem.model_fields.keys()
    assert f"list of 1 to {MAX_INPUTS}" in TEXT and f"{MAX_PIXELS:,} pixels" in TEXT


def test_every_expression_parses() -> None:
    expressions = table(TEXT, "expression")
    assert len(expressions) >= 5
    for expression in expressions:
        assert parse(expression).describe() == expression


def test_every_method_and_no_other() -> None:
    documented = table(TEXT, "method")
    assert documented.keys() == METHODS.keys()
    for name, (formula, *listed) in documented.items():
        assert METHODS[name].paper in formula
        keys = METHODS[name].defaults, METHODS[name].presets
        assert listed == [", ".join(f"`{key}`" for key in given) or "none" for given in keys]


def subclasses(cls: type[errors.PatchbayError]) -> set[type[errors.PatchbayError]]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def raised() -> list[type[errors.PatchbayError]]:
    """The errors of the library and the server that somebody makes; the command line and the demo explain their own."""
    return [
        cls
        for cls in subclasses(errors.PatchbayError)
        if cls.__module__.startswith(("patchbay.", "patchbay_server."))
        and not re.search(r"\.(commands|demo)\.", cls.__module__)
        and re.search(rf"(?<!class )\b{cls.__name__}(\.named)?\(", SOURCES)
    ]


def test_every_error_code_and_no_other() -> None:
    answers, others = table(section("## Errors"), "code"), table(TEXT[TEXT.index("These come up when") :], "code")
    framework = {"invalid_request", "internal_error", "http_error", *_HTTP_CODES.values()}
    assert not answers.keys() & others.keys()
    assert answers.keys() | others.keys() == {cls.code for cls in raised()} | framework


def test_the_status_of_every_error() -> None:
    answers = table(section("## Errors"), "code")
    for cls in raised():
        if cls.code in answers:
            assert answers[cls.code][0] == str(status_of(cls.__new__(cls))), cls.code
    for status, code in _HTTP_CODES.items():
        assert answers[code][0] == str(status) or str(status) in answers[code][1]


def test_every_metric_and_no_other(vit: Served) -> None:
    registry = vit.app.state.metrics.registry
    collectors = {c for c in registry._names_to_collectors.values() if isinstance(c, MetricWrapperBase)}
    real = {}
    for collector in collectors:
        [family] = collector.collect()
        name = family.name + ("_total" if family.type == "counter" else "")
        real[name] = [family.type, ", ".join(f"`{label}`" for label in collector._labelnames)]
    for family in ProcessCollector(registry=None).collect():
        real[family.name + ("_total" if family.type == "counter" else "")] = [family.type, ""]
    assert {name: cells[:2] for name, cells in table(TEXT, "metric").items()} == real


def test_every_field_of_the_log_and_no_other() -> None:
    of_requests = {name.strip('"') for name in re.findall(r'"\w+"(?=: )', inspect.getsource(Access._tell))}
    of_lines = {name.strip('"') for name in re.findall(r'"\w+"(?=: )', inspect.getsource(logs))}
    assert table(TEXT, "log field").keys() == of_requests | of_lines | {field.name for field in fields(About)}


def test_every_setting_and_no_other() -> None:
    documented = table(TEXT, "variable")
    assert documented.keys() == {f"PATCHBAY_{field.upper()}" for field in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = "required" if field.default is PydanticUndefined else str(field.default)
        shown = documented[f"PATCHBAY_{name.upper()}"][0].strip("`")
        assert shown == ("none" if default == "None" else default)
    assert all(f"`{task.value}`" in documented["PATCHBAY_TASK"][1] for task in Task)


def shape(value: Any, depth: int = 0) -> Any:
    """Keys and types; of a list the first entry. What is under a key of DATA is data."""
    if isinstance(value, dict):
        return {key: shape(inner) if key not in DATA else {} for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def example(heading: str) -> Any:
    found = re.search(r"```json\n(.*?)```", section(heading), re.DOTALL)
    assert found, heading
    return json.loads(found[1])


def eeg_answers(serve: Serve, folder: Path) -> dict[str, Any]:
    eeg = serve(Backbone.load(encoder_of_eeg(folder / "eeg")))
    eeg.upload("eyes", classifier_of_eeg(folder / "eeg", "left", folder / "eyes"))
    loud = 0.4 * rows()
    loud[:, 390:] += 300
    asked = {"model": "eyes", "signal": loud.tolist(), "reject": True, "stride_s": 1}
    return {
        "POST /v1/eeg/classify": ok(ask(eeg, **asked)),
        "POST /v1/eeg/embed": ok(ask(eeg, "embed", model="0.5*eyes")),
    }


@pytest.fixture
def answers(
    serve: Serve,
    delta_file: Callable[..., Path],
    finetune_folder: Callable[..., Path],
    model_folder: Callable[..., Path],
    tmp_path: Path,
) -> dict[str, Any]:
    """A live answer for every example."""
    vit, encoder, llama = (serve(kind) for kind in ("vit", "bert_encoder", "llama"))
    found = {"POST /v1/deltas": vit.upload("noisy", delta_file("vit", 1))}
    encoder.upload("math", delta_file("bert_encoder"))
    llama.upload("math", delta_file("llama"))
    asked = {"model": "0.5*math", "input": "the cat"}
    found["POST /v1/embeddings"] = ok(encoder.post("/v1/embeddings", asked))
    found["POST /v1/completions"] = ok(llama.post("/v1/completions", {"model": "0.5*math", "prompt": "the cat"}))
    talker = talking(serve, model_folder, tmp_path)
    talker.upload("math", delta_file("llama"))
    chat = {"model": "0.5*math", "messages": [{"role": "user", "content": "the cat"}]}
    found["POST /v1/chat/completions"] = ok(talker.post("/v1/chat/completions", chat))
    found["POST /v1/classify"] = ok(vit.post("/v1/classify", {"model": "0.6*noisy", "input": IMAGE}))
    found |= eeg_answers(serve, tmp_path)
    found["POST /v1/merges"] = ok(vit.post("/v1/merges", {"name": "both", "recipe": "linear(noisy)"}), 201)
    found["POST /v1/merges:preview"] = ok(vit.post("/v1/merges:preview", {"recipe": "linear(noisy)"}))
    found["PUT /v1/blobs/{digest}"] = ok(
        vit.client.put(f"/v1/blobs/sha256:{sha256(b'x').hexdigest()}", content=b"x"), 201
    )
    wanted = {"name": "math", "files": put_folder(vit, finetune_folder("vit")), "density": 0.05}
    job = found["POST /v1/compressions"] = ok(vit.post("/v1/compressions", wanted), 202)
    assert work(vit) == 1
    found["GET /v1/jobs/{job}"] = ok(vit.get(f"/v1/jobs/{job['id']}"))
    found["POST /v1/base/verify"] = ok(vit.post("/v1/base/verify"))
    for path in ("/v1/deltas", "/v1/models", "/v1/base", "/healthz", "/readyz"):
        found[f"GET {path}"] = ok(vit.get(path))
    return found


def success(app: Any, route: str) -> type[BaseModel]:
    """The schema that OpenAPI has for the answers of `METHOD /path`."""
    method, _, path = route.partition(" ")
    [schema, *more] = [
        found["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for status, found in app.openapi()["paths"][path][method.lower()]["responses"].items()
        if status.startswith("2")
    ]
    assert set(more) <= {schema}
    model: type[BaseModel] = getattr(answer_schemas, schema, None) or getattr(inference_schemas, schema)
    return model


def assert_described(app: Any, route: str, body: dict[str, Any]) -> None:
    """It is as OpenAPI says, and with anything more it would not be."""
    schema = success(app, route)
    schema.model_validate_json(json.dumps(body), strict=True)
    with pytest.raises(ValidationError):
        schema.model_validate_json(json.dumps(body | {"more": 1}), strict=True)


def test_every_example_has_the_shape_of_a_real_answer(answers: dict[str, Any], vit: Served) -> None:
    shown = {f"{m} {p}" for m, p in documented_routes() if "```json" in section(f"### `{m} {p}`")}
    assert shown == answers.keys()
    for route, answer in answers.items():
        assert shape(example(f"### `{route}`")) == shape(answer), route
        assert_described(vit.app, route, answer)
        assert_described(vit.app, route, example(f"### `{route}`"))
    assert shape(example("## Errors")) == shape(vit.get("/v1/deltas/rotate").json())


def test_the_patch_that_is_shown_is_one() -> None:
    shown = example("## Models, expressions and recipes")
    assert shown["model"] == "base" and Recipe.model_validate(shown["patch"]).head == "math"
