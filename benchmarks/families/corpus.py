"""Text that every machine with Python has: its standard library, in four domains and the rest.

Nothing is drawn at random. Documents (files, or the manual's topics) are split by a hash of their names, so that no
document lends text to two parts. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

Part = Literal["train", "calibration", "test"]
STDLIB = Path(sysconfig.get_path("stdlib"))
# Folders that CPython always ships; what distributions leave out (test, idlelib, tkinter) is used nowhere.
DOMAINS: dict[str, tuple[str, ...]] = {
    "codepages": ("encodings",),
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "threading.py", "queue.py", "selectors.py"),
    "network": ("email", "http", "urllib", "xmlrpc", "wsgiref", "ftplib.py", "imaplib.py", "poplib.py", "smtplib.py"),
}
MANUAL = "manual"
NAMES = (*DOMAINS, MANUAL)
_NOT_EVERYWHERE = {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip"}
_ELSEWHERE = _NOT_EVERYWHERE | {"site-packages", "dist-packages", "pydoc_data"}


def general() -> list[str]:
    """The library without the four domains: what a base is pre-trained on."""
    taken = {STDLIB / place for places in DOMAINS.values() for place in places}
    return [_text(file) for file in _files([STDLIB]) if taken.isdisjoint([file, *file.parents])]


def domain(name: str, part: Part) -> list[str]:
    """One part of a domain's documents, in a fixed order."""
    return [text for document, text in _documents(name) if _part(document) == part]


def _documents(name: str) -> list[tuple[str, str]]:
    if name == MANUAL:
        return _manual()
    files = _files(STDLIB / place for place in DOMAINS[name])
    return [(file.relative_to(STDLIB).as_posix(), _text(file)) for file in files]


def _manual() -> list[tuple[str, str]]:
    """pydoc's topics. Many quote others in full, so a paragraph stays with the first topic that has it."""
    seen: set[str] = set()
    documents = []
    for name in sorted(topics):
        paragraphs = {" ".join(text.split()): text for text in topics[name].split("\n\n")}
        fresh = [text for key, text in paragraphs.items() if key not in seen]
        seen |= paragraphs.keys()
        documents.append((name, "\n\n".join(fresh)))
    return documents


def _files(places: Iterable[Path]) -> list[Path]:
    found = [file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))]
    return sorted(file for file in found if _ELSEWHERE.isdisjoint(file.relative_to(STDLIB).parts))


def _text(file: Path) -> str:
    return file.read_text("utf-8", errors="replace")


def _part(document: str) -> Part:
    share = int(hashlib.sha256(document.encode()).hexdigest(), 16) % 10
    return "test" if share < 2 else "calibration" if share == 2 else "train"
