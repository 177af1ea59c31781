"""The real app over a pico base, and the one helper that looks at errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient
from tests import pico
from tests.delta import samples
from transformers import PreTrainedModel

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.engine import Engine
from patchbay.merge import METHODS
from patchbay.store import Catalog
from patchbay.store.filesystem import FileBlobs
from patchbay.store.hub import Hub
from patchbay_server.app import create_app
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.server import open_engine, open_hub
from patchbay_server.settings import Settings

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error"}


@dataclass(frozen=True, slots=True)
class Served:
    """One app with a store of its own. `get`, `post` ... are the client's."""

    client: TestClient
    app: FastAPI
    engine: Engine
    hub: Hub
    store: Path

    @property
    def backbone(self) -> Backbone:
        return self.engine.backbone

    def get(self, path: str, **options: Any) -> Response:
        return self.client.get(path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Response:
        return self.client.post(path, json=body, **options) if body is not None else self.client.post(path, **options)

    def put(self, path: str, body: object) -> Response:
        return self.client.put(path, json=body)

    def delete(self, path: str) -> Response:
        return self.client.delete(path)

    def send(self, name: str, content: Any, **params: Any) -> Response:
        """An upload, whatever comes of it."""
        data = content.read_bytes() if isinstance(content, Path) else content
        return self.client.post("/v1/deltas", params={"name": name, **params}, content=data)

    def upload(self, name: str, content: Any, **params: Any) -> dict[str, Any]:
        """An upload that makes a new version."""
        return ok(self.send(name, content, **params), 201)

    def classify(self, model: str, inputs: object, **more: object) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = ok(self.post("/v1/classify", {"model": model, "input": inputs, **more}))["data"]
        return data

    def probabilities(self, model: str, inputs: object, **more: object) -> torch.Tensor:
        rows = self.classify(model, inputs, **more)
        return torch.tensor([list(row["probabilities"].values()) for row in rows])

    def files(self) -> set[str]:
        """Everything in the blob store but the locks of this process."""
        found = {str(path.relative_to(self.store)) for path in (self.store / "blobs").rglob("*") if path.is_file()}
        return {path for path in found if not path.endswith(".lock")}


@contextmanager
def serving(backbone: Backbone, store: Path, catalog: Catalog | None = None, **settings: Any) -> Iterator[Served]:
    """The app as `serve` makes it, but for the socket; `catalog` replaces the embedded one."""
    made = Settings(base=str(backbone.folder), store=store, **settings)
    if catalog is None:
        hub = open_hub(made, backbone.name)
    else:
        hub = Hub(catalog, FileBlobs(store / "blobs"), frozenset({"base", backbone.name, *METHODS}))
    engine = open_engine(made, backbone, hub)
    queue = SqliteQueue(made.jobs_path)
    app = create_app(made, engine, hub, queue)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Served(client, app, engine, hub, store)
    engine.close()
    queue.close()
    hub.close()


Serve = Callable[..., Served]


def ok(response: Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    return body


def assert_error(response: Response, status: int, code: str, param: str | None = None) -> str:
    """The one shape of every error, with these values; returns the message."""
    assert response.status_code == status, response.text
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = response.json()
    message = body["error"]["message"] if isinstance(body, dict) else None
    assert body == {"error": {"message": message, "type": kind, "param": param, "code": code}}
    assert isinstance(message, str) and message and "Traceback" not in message
    assert response.headers["content-type"] == "application/json"
    return message


@torch.inference_mode()
def probabilities(model: PreTrainedModel, **batch: torch.Tensor) -> torch.Tensor:
    """What transformers alone answers."""
    return torch.softmax(model.eval()(**batch).logits.float(), dim=-1)


def summed(base: Path, out: Path, terms: Iterable[tuple[Delta, float]]) -> Path:
    """base + sum of weight * delta, added up in double precision, as an ordinary folder."""

    def merged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        total = {name: tensor.double() for name, tensor in tensors.items()}
        for delta, weight in terms:
            for name, rows in delta.matrices.items():
                total[name] += weight * rows.to_dense().double()
            for name, vector in delta.vectors.items():
                total[name] += weight * vector.double().reshape(total[name].shape)
        return {name: tensor.to(tensors[name].dtype) for name, tensor in total.items()}

    return pico.rewrite(base, out, merged)


def edited(file: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A delta file whose manifest was changed by hand; frames and payload hash stay."""
    return samples.edited(file.read_bytes(), change)
