"""What a process would write, line by line, while a test runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from patchbay_server.logs import OURS, Json


class Kept(logging.Handler):
    """Lines in place of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Json())
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.texts]

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["message"] == "request"]


@contextmanager
def logged() -> Iterator[Kept]:
    """Everything at debug."""
    kept, loggers = Kept(), [logging.getLogger(name) for name in OURS]
    levels = [logger.level for logger in loggers]
    logging.getLogger().addHandler(kept)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    try:
        yield kept
    finally:
        logging.getLogger().removeHandler(kept)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
