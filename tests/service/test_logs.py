from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any

from tests.waiting import until

from patchbay.errors import StoreUnavailable
from patchbay_server.logs import FIELDS, MAX_LINES, About, Json, Lines, Text, current, note

SECRET = "the prompt itself"


def record(
    message: str, *arguments: object, name: str = "patchbay", error: BaseException | None = None, **more: Any
) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord(name, logging.ERROR, "", 0, message, arguments, info)
    for key, value in more.items():
        setattr(made, key, value)
    return made


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def shown(made: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Json().format(made))
    return found


def test_a_line_is_an_object() -> None:
    line = shown(record("%d of\n%s", 3, "ü", **{FIELDS: {"number": 7}}))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "error", "logger": "patchbay", "message": "3 of\nü", "number": 7}
    assert "\n" not in Json().format(record("a\nb"))


def test_of_an_exception_the_type_and_the_place() -> None:
    error = raised(RuntimeError(SECRET), raised(ValueError(SECRET), raised(KeyError(SECRET))))
    for text in (Json().format(record("it failed", error=error)), Text().format(record("it failed", error=error))):
        assert SECRET not in text and "test_logs.py" in text
    line = shown(record("it failed", error=error))
    assert line["exception"] == "RuntimeError"
    names = [row for row in line["traceback"].splitlines() if row in ("KeyError", "ValueError", "RuntimeError")]
    assert names == ["KeyError", "ValueError", "RuntimeError"], "what it came from goes before it"


def test_what_we_say_ourselves_is_said() -> None:
    error = raised(StoreUnavailable("the catalog does not answer"), raised(OSError(SECRET)))
    line = shown(record("it failed", error=error))
    assert line["exception"] == "StoreUnavailable: the catalog does not answer" and SECRET not in line["traceback"]


def test_what_asyncio_tells_of_a_task_is_cut() -> None:
    message = f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{SECRET}')>"
    assert shown(record(message, name="asyncio"))["message"] == "Task exception was never retrieved"


def test_text_is_one_line_and_then_where_it_failed() -> None:
    text = Text().format(record("it runs", **{FIELDS: {"port": 8321}}))
    assert text.endswith(" error   it runs port=8321") and "\n" not in text
    first, *places = Text().format(record("it failed", error=raised(ValueError(SECRET)))).splitlines()
    assert first.endswith("it failed exception=ValueError") and places


def test_a_line_knows_its_request() -> None:
    note(model="math")  # of no request: nothing happens
    token = current.set(About("id-1"))
    try:
        note(model="math", prompt_tokens=0)
        line = shown(record("something"))
    finally:
        current.reset(token)
    assert (line["request_id"], line["model"], line["prompt_tokens"]) == ("id-1", "math", 0) and "path" not in line
    assert "request_id" not in shown(record("something"))


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    """A pipe that is full: lines wait, then they are dropped, and once somebody reads it is said how many."""
    reader, writer = os.pipe()
    logger, count = logging.getLogger("patchbay_server"), MAX_LINES + 5_000
    found: list[dict[str, Any]] = []
    with os.fdopen(reader) as end, os.fdopen(writer, "w") as stream:
        lines = Lines(stream, Json())
        logger.addHandler(lines)
        somebody = threading.Thread(target=lambda: found.extend(map(json.loads, end)))
        try:
            for number in range(count):
                lines.emit(record("line %d", number))
            lines.emit(record("%d", SECRET))  # its argument does not fit: the standard library would print it
            somebody.start()
            until(lambda: any("lines" in line for line in list(found)))
            lines.flush()
        finally:
            logger.removeHandler(lines)
            stream.close()
            somebody.join()
    numbers = [int(line["message"].split()[1]) for line in found if line["message"].startswith("line ")]
    dropped = sum(line.get("lines", 0) for line in found)
    assert numbers == sorted(numbers) and numbers[0] == 0 and dropped > 0
    assert not any(SECRET in line["message"] for line in found)


def test_libraries_that_log_from_info_on_are_heard_from_warnings_on() -> None:
    """As Ray sets itself up: a level and a handler of its own, which the root's level does not bound."""
    code = """
import logging
from patchbay_server import logs
with logs.configured("json", "info"):
    for name in ("ray", "ray.serve"):
        library = logging.getLogger(name)
        library.setLevel(logging.INFO)
        library.addHandler(logging.StreamHandler())
    logs.adopt_libraries()
    logging.getLogger("ray.serve").info("a replica is ready")
    logging.getLogger("ray.serve").warning("a replica died")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["a replica died"]
