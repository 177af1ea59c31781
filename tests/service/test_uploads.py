"""What an upload must not be: each refusal by its code, and nothing of it on disk."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.service.serving import Serve, Served, assert_error, edited, ok

from patchbay.delta import DeltaFile, SparseRows, write_delta
from patchbay.delta.encode import Streams

MATRIX = "vit.encoder.layer.0.attention.attention.key.weight"
BIAS = "vit.encoder.layer.0.attention.attention.key.bias"


@pytest.fixture
def served(serve: Serve, delta_file: Callable[..., Path]) -> Served:
    served = serve("vit")
    served.upload("math", delta_file("vit", 1))
    return served


@pytest.fixture
def good(delta_file: Callable[..., Path]) -> Path:
    return delta_file("vit", 2)


@contextmanager
def nothing_is_kept(served: Served) -> Iterator[None]:
    files, listed = served.files(), ok(served.get("/v1/deltas"))
    yield
    assert served.files() == files
    assert ok(served.get("/v1/deltas")) == listed


def handmade(source: Path, out: Path, fill: Callable[[Streams], object]) -> Path:
    """A file like `source` whose tensors are those that `fill` adds."""
    streams = Streams()
    fill(streams)
    entries, data = streams.finish()
    fields = DeltaFile.open(source).manifest.model_dump(exclude={"format_version", "payload_sha256"})
    write_delta(out, {**fields, "tensors": entries}, data)
    return out


def row(value: float) -> SparseRows:
    return SparseRows((64, 64), torch.tensor([0, 5], dtype=torch.int32), torch.tensor([0.5, value]))


def torch_zip() -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, file)
    return file.getvalue()


@pytest.mark.parametrize("content", [pickle.dumps({"w": [1.0]}), torch_zip(), b"\x1f\x8b\x08" + bytes(64)])
def test_only_safetensors_is_read(served: Served, content: bytes) -> None:
    with nothing_is_kept(served):
        message = assert_error(served.send("new", content), 415, "unsupported_file", "file")
    assert "only safetensors files are read" in message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda data: b"", "file"),
        (lambda data: b"no delta at all", "file"),
        (lambda data: data[:100], "file"),
        (lambda data: data[:-1], "file"),
        (lambda data: data + b"x", "file"),
        (lambda data: (5 << 20).to_bytes(8, "little") + data[8:], "file"),
    ],
    ids=["empty", "text", "cut in the header", "cut at the end", "longer", "header beyond the end"],
)
def test_files_that_are_broken(served: Served, good: Path, change: Callable[[bytes], bytes], param: str) -> None:
    with nothing_is_kept(served):
        assert_error(served.send("new", change(good.read_bytes())), 422, "malformed_delta", param)


def test_one_bit_that_flipped(served: Served, good: Path) -> None:
    data = bytearray(good.read_bytes())
    data[-1] ^= 1
    with nothing_is_kept(served):
        response = served.send("new", bytes(data))
        assert_error(response, 422, "malformed_delta", response.json()["error"]["param"])


def test_an_ordinary_model_is_no_delta(served: Served) -> None:
    with nothing_is_kept(served):
        response = served.send("new", served.backbone.folder / pico.WEIGHTS)
        assert "patchbay compress" in assert_error(response, 422, "malformed_delta", "file")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"format_version": 99}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"payload_sha256": f"sha256:{'0' * 64}"}, "file"),
    ],
)
def test_manifests_that_do_not_hold(served: Served, good: Path, change: dict[str, Any], param: str) -> None:
    with nothing_is_kept(served):
        response = served.send("new", edited(good, lambda manifest: manifest.update(change)))
        assert_error(response, 422, "malformed_delta", param)


def test_another_base(served: Served, delta_file: Callable[..., Path]) -> None:
    with nothing_is_kept(served):
        response = served.send("new", delta_file("bert_encoder"))
        message = assert_error(response, 422, "wrong_base", "base.fingerprint")
    assert served.backbone.fingerprint[:19] in message


def as_if_made_for(served: Served, file: Path) -> bytes:
    return edited(file, lambda manifest: manifest["base"].update(fingerprint=served.backbone.fingerprint))


def test_the_first_unknown_tensor_is_named(
    served: Served, delta_file: Callable[..., Path], model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    deeper = model_folder("vit", layers=3)
    tuned = pico.perturb(deeper, tmp_path / "tuned")
    file = pico.delta_file(deeper, tuned, tmp_path / "deeper.safetensors")
    first = min(name for name in DeltaFile.open(file).manifest.tensors if name not in served.backbone.specs)
    with nothing_is_kept(served):
        message = assert_error(served.send("new", as_if_made_for(served, file)), 422, "unknown_tensor", first)
    assert first in message


def test_the_first_wrong_shape_is_named(served: Served, model_folder: Callable[..., Path], tmp_path: Path) -> None:
    labels = ("a", "b", "c", "d", "e")
    other = model_folder("vit", labels=labels)
    file = pico.delta_file(other, pico.perturb(other, tmp_path / "tuned"), tmp_path / "other.safetensors")
    with nothing_is_kept(served):
        message = assert_error(served.send("new", as_if_made_for(served, file)), 422, "wrong_shape", "classifier.bias")
    assert "[5]" in message and "[3]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(served: Served, good: Path, tmp_path: Path, value: float) -> None:
    sparse = handmade(good, tmp_path / "a", lambda s: s.add_sparse(MATRIX, row(value), "fp32", torch.float32))
    dense = handmade(good, tmp_path / "b", lambda s: s.add_dense(BIAS, torch.full((64,), value), "fp32", torch.float32))
    with nothing_is_kept(served):
        assert_error(served.send("new", sparse), 422, "non_finite_value", MATRIX)
        assert_error(served.send("new", dense), 422, "non_finite_value", BIAS)
    finite = handmade(good, tmp_path / "c", lambda s: s.add_sparse(MATRIX, row(1.0), "fp32", torch.float32))
    served.upload("new", finite)


def in_chunks(data: bytes, size: int = 1000) -> Iterator[bytes]:
    yield from (data[i : i + size] for i in range(0, len(data), size))


def test_uploads_over_the_cap(serve: Serve, good: Path) -> None:
    size = good.stat().st_size
    served = serve("vit", max_upload_bytes=size - 1)
    with nothing_is_kept(served):
        declared = served.send("new", good)
        message = assert_error(declared, 413, "delta_too_large", declared.json()["error"]["param"])
        assert str(size - 1) in message
        streamed = served.send("new", in_chunks(good.read_bytes()))
        assert "content-length" not in streamed.request.headers
        assert_error(streamed, 413, "delta_too_large", streamed.json()["error"]["param"])


def test_uploads_at_the_cap_and_in_chunks(serve: Serve, good: Path) -> None:
    served = serve("vit", max_upload_bytes=good.stat().st_size, max_body_bytes=1000)
    record = served.upload("new", in_chunks(good.read_bytes(), 7))
    assert ok(served.send("new", good)) == record


def test_a_sender_that_goes_away(served: Served, good: Path) -> None:
    """The body ends in the middle, without the message that ends it."""
    app, data = served.app, good.read_bytes()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/deltas",
        "raw_path": b"/v1/deltas",
        "query_string": b"name=new",
        "headers": [(b"host", b"testserver")],
        "app": app,
    }
    messages = [
        {"type": "http.request", "body": data[:1000], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    with nothing_is_kept(served):
        assert served.client.portal is not None
        served.client.portal.call(app, scope, receive, send)
    assert not messages


@pytest.fixture
def headed(serve: Serve) -> Served:
    return serve("bert_encoder")


@pytest.fixture(scope="session")
def with_head(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier made from the plain encoder: its delta brings a head."""
    tuned = model_folder("bert_classifier", seed=0)
    out = tmp_path_factory.mktemp("head") / "head.safetensors"
    return pico.delta_file(model_folder("bert_encoder"), tuned, out, density=0.1)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["BertModel"]},
        {"architectures": [5]},
        {"architectures": []},
        {"architectures": "BertForSequenceClassification"},
        {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}},
        {"architectures": ["BertForSequenceClassification"], "id2label": {"x": "a", "y": "b", "z": "c"}},
        {"architectures": ["BertForSequenceClassification"], "id2label": 5},
        {"architectures": ["BertForSequenceClassification"], "problem_type": {"a": []}},
        {},
    ],
)
def test_heads_that_are_none(headed: Served, with_head: Path, config: dict[str, Any]) -> None:
    with nothing_is_kept(headed):
        response = headed.send("new", edited(with_head, lambda manifest: manifest.update(config=config)))
        assert_error(response, 422, "malformed_delta", response.json()["error"]["param"])


def test_a_config_cannot_ask_for_another_model(headed: Served, with_head: Path) -> None:
    """A delta's config comes from outside: neither its sizes nor its code references reach the server's model."""
    hostile = {
        "num_hidden_layers": 10**9,
        "hidden_size": "many",
        "_attn_implementation": "somebody/kernel",
        "auto_map": {"AutoModelForSequenceClassification": "somebody/model--code.Model"},
        "quantization_config": {"quant_method": "surprise"},
    }
    headed.upload("plain", with_head)
    headed.upload("hostile", edited(with_head, lambda manifest: manifest["config"].update(hostile)))
    assert headed.classify("hostile", "the cat") == headed.classify("plain", "the cat")


def test_the_first_check_that_fails_answers(
    served: Served, good: Path, delta_file: Callable[..., Path], tmp_path: Path
) -> None:
    """In the order that API.md gives."""
    ok(served.post("/v1/merges", {"name": "both", "recipe": "math"}), 201)
    other_base = bytearray(delta_file("bert_encoder").read_bytes())
    other_base[8 + int.from_bytes(other_base[:8], "little")] ^= 1  # the first byte of the first frame
    nan = handmade(good, tmp_path / "nan", lambda s: s.add_sparse(MATRIX, row(float("nan")), "fp32", torch.float32))
    with nothing_is_kept(served):
        assert_error(served.send("Both", b"PK\x03\x04"), 422, "invalid_name", "name")
        assert_error(served.send("both", b"PK\x03\x04"), 415, "unsupported_file", "file")
        assert_error(served.send("both", bytes(other_base)), 422, "wrong_base", "base.fingerprint")
        assert_error(served.send("both", nan), 422, "non_finite_value", MATRIX)
        assert_error(served.send("both", good), 409, "name_taken", "name")
