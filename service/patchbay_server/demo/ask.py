"""A client of the server, as a user would write it: uploads a delta, sends images, counts right answers.

Knows nothing of models and training: everything goes over HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from patchbay.errors import PatchbayError
from patchbay_server.demo.tasks import Images, Labels, encode_png

BATCH = 180


class DemoFailed(PatchbayError):
    """The demo's own server did not do what was asked."""

    code = "demo_failed"


def upload(client: httpx2.Client, name: str, file: Path) -> dict[str, Any]:
    """The record of the new version."""
    with file.open("rb") as body:
        response = client.post("/v1/deltas", params={"name": name}, content=body)
    return checked(response)


def ask(client: httpx2.Client, model: str, images: Images) -> list[str]:
    """One label an image, under whatever `model` names."""
    labels: list[str] = []
    for start in range(0, len(images), BATCH):
        items = [{"image": encode_png(image)} for image in images[start : start + BATCH]]
        response = client.post("/v1/classify", json={"model": model, "input": items})
        labels += [answer["label"] for answer in checked(response)["data"]]
    return labels


def accuracy(client: httpx2.Client, model: str, images: Images, labels: Labels) -> float:
    """The fraction of images that `model` reads right."""
    answers = ask(client, model, images)
    right = sum(answer == str(label) for answer, label in zip(answers, labels.tolist(), strict=True))
    return right / len(answers)


def verify(client: httpx2.Client) -> bool:
    """Whether the resident base is still what was loaded."""
    return bool(checked(client.post("/v1/base/verify"))["ok"])


def request_body(model: str, images: Sequence[Any]) -> dict[str, Any]:
    """What `ask` sends, for a file that curl can send again."""
    return {"model": model, "input": [{"image": encode_png(image)} for image in images]}


def checked(response: httpx2.Response) -> dict[str, Any]:
    """Raises DemoFailed, with what the server says."""
    body: dict[str, Any] = response.json()
    if response.status_code >= 400:
        raise DemoFailed(f"the server answered {response.status_code}: {body['error']['message']}")
    return body
