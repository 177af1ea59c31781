"""Streams read to the letter, a base that chats, and an engine that is held between two steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from httpx2 import Response
from tests import pico
from tests.service.serving import Serve, Served
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from patchbay.backbone import Backbone

DONE = "data: [DONE]\n\n"
TEMPLATE = (
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('the user speaks first') }}{% endif %}"
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'big' if message['role'] == 'system' else 'one' if message['role'] == 'user' else 'two' }} "
    "{{ message['content'] | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %} my{% endif %}"
)


def parse(line: str) -> dict[str, Any]:
    assert line.startswith("data: ") and line.endswith("\n\n") and "\n" not in line[:-2], line
    found: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return found


def events(response: Response) -> list[dict[str, Any]]:
    """Of a whole stream that ended well."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith(DONE)
    return [parse(part + "\n\n") for part in response.text.removesuffix(DONE).split("\n\n")[:-1]]


def stream(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return events(served.post(path, {**body, "stream": True}))


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, f"{what} did not come to be"
        time.sleep(0.01)


def under_way(served: Served) -> int:
    scheduler = served.engine.language.generator.scheduler
    return len(scheduler.running) + len(scheduler.waiting)


@contextmanager
def held(served: Served) -> Iterator[None]:
    """The engine makes no step."""
    with served.engine._lock:
        yield


def talking(serve: Serve, model_folder: Callable[..., Path], folder: Path, template: str | None = TEMPLATE) -> Served:
    """A language model with a chat template, whose tokenizer begins every text with a token by itself."""
    base = pico.rewrite(model_folder("llama"), folder / "talker", lambda tensors: tensors)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    tokenizer.save(str(base / "tokenizer.json"))
    if template is not None:
        (base / "chat_template.jinja").write_text(template, "utf-8")
    return serve(Backbone.load(base))
