"""What a process says of itself: one line a record on stderr, as JSON or as text, with the request that it is about.

A line never holds what people send or are answered: of an exception it has the type and the place, and its message only
where it is one of ours. A log that nobody reads stops nobody. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from queue import Queue
from typing import IO, Any

from patchbay.errors import PatchbayError

MAX_LINES = 10_000  # that may wait to be written; more are dropped, and counted
FLUSH_S = 2.0
OURS = ("patchbay", "patchbay_server")
FIELDS = "fields"  # the attribute of a record that has more than a message
logger = logging.getLogger("patchbay_server")


@dataclass(slots=True)
class About:
    """A request, and what was found out of it so far. `model` is a label as metrics have it, never an expression."""

    request_id: str
    model: str | None = None
    path: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    code: str | None = None  # of the error that it ended with

    def known(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value is not None}


current: ContextVar[About | None] = ContextVar("patchbay_request", default=None)


def note(**found: str | int | None) -> None:
    """Something about the request that this is done for, if it is done for any."""
    about = current.get()
    if about is not None:
        for name, value in found.items():
            setattr(about, name, value)


@contextmanager
def configured(log_format: str | None, level: str) -> Iterator[None]:
    """Everything that this process logs goes to stderr from now on: ours from `level` on, libraries' from warnings on,
    since below that some write what they are given. `log_format` None is text at a terminal, else JSON. On the way out
    all is written.
    """
    as_text = log_format == "text" or (log_format is None and sys.stderr.isatty())
    lines = Lines(sys.stderr, Text() if as_text else Json())
    logging.basicConfig(level=logging.WARNING, handlers=[lines], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    adopt_libraries()
    logging.captureWarnings(True)
    threading.excepthook, sys.unraisablehook = _thread_died, _unraisable
    try:
        yield
    finally:
        lines.flush()


def adopt_libraries() -> None:
    """Those that write to stderr by themselves do it as everybody does, from warnings on; to be called again where they
    come later, or set themselves up anew.
    """
    for name in ("transformers", "huggingface_hub", "ray", "ray.serve"):
        library = logging.getLogger(name)
        library.handlers, library.propagate = [], True
        library.setLevel(max(library.level, logging.WARNING))  # Ray's is at info, which the root's level does not bound


class Lines(logging.Handler):
    """Lines are written by a thread of its own: whoever logs never waits for whoever reads."""

    def __init__(self, stream: IO[str], form: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(form)
        self._stream = stream
        self._waiting: Queue[str] = Queue(MAX_LINES)
        self._dropped = 0
        threading.Thread(target=self._write, name="patchbay-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Drops it where nobody reads, and where its arguments do not fit: the standard library would print those."""
        try:
            self._waiting.put_nowait(self.format(record))
        except Exception:
            self._dropped += 1

    def flush(self) -> None:
        """Waits until all of it is written, but not for a reader who does not come."""
        with self._waiting.all_tasks_done:
            self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, FLUSH_S)

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            dropped, self._dropped = self._dropped, 0
            with suppress(OSError, ValueError):  # nobody can be told that stderr is gone
                self._stream.write(line + "\n")
                self._stream.flush()
            self._waiting.task_done()
            if dropped:
                logger.warning("lines of the log were dropped", extra={FIELDS: {"lines": dropped}})


class Json(logging.Formatter):
    """An object a line: `time`, `level`, `logger`, `message`, then what is known of the request."""

    def format(self, record: logging.LogRecord) -> str:
        shown = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        return json.dumps(shown | _fields(record) | _failure(record), ensure_ascii=False, default=str)


class Text(logging.Formatter):
    """For people: the time of the day, the level, the message and what is known, on a line; then where it failed."""

    def format(self, record: logging.LogRecord) -> str:
        failure = _failure(record)
        words = [f"{_time(record).astimezone():%H:%M:%S}", f"{record.levelname.lower():7}", _message(record)]
        words += [f"{name}={value}" for name, value in _fields(record).items()]
        words += [f"exception={failure['exception']}"] if failure else []
        return " ".join(words) + (f"\n{failure['traceback']}" if failure else "")


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _message(record: logging.LogRecord) -> str:
    """asyncio writes out the task that failed, and with it the exception's message, after its first line."""
    message = record.getMessage()
    return message.partition("\n")[0] if record.name == "asyncio" else message


def _fields(record: logging.LogRecord) -> dict[str, object]:
    about = current.get()
    given: Mapping[str, object] = getattr(record, FIELDS, {})
    return {**(about.known() if about else {}), **given}


def _failure(record: logging.LogRecord) -> dict[str, Any]:
    """Type and place of an exception and of those that it came from."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return {}
    return {"exception": _named(error), "traceback": "\n".join(_places(error))}


def _named(error: BaseException) -> str:
    name = type(error).__qualname__
    return f"{name}: {error.message}" if isinstance(error, PatchbayError) else name


def _places(error: BaseException) -> list[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = [] if cause is None else [*_places(cause), "which led to"]
    frames = traceback.extract_tb(error.__traceback__)
    return [*before, *(f"{at.filename}:{at.lineno} in {at.name}" for at in frames), _named(error)]


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None and not isinstance(died.exc_value, SystemExit):
        name = died.thread.name if died.thread else None
        logger.critical("a thread died", exc_info=died.exc_value, extra={FIELDS: {"thread": name}})


def _unraisable(failed: Any) -> None:
    """What an object raised while it was thrown away."""
    logger.error("an exception that nobody could be told of", exc_info=failed.exc_value)
