"""Recordings in requests: JSON, or a form of JSON and a file, EDF, BDF or .npy. Read in memory, and kept nowhere.

Knows nothing of models and of what is asked about a recording.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import BoundedSemaphore
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from fastapi import Request, Response
from pydantic import BeforeValidator, Field, StrictBool, model_validator
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from patchbay.engine.patience import LOOK_S, Patience
from patchbay.errors import InputError
from patchbay.models.neuript import edf
from patchbay.models.neuript.recording import Recording, plain_unit
from patchbay.models.neuript.steps import MOST_CHANNELS
from patchbay_server.bodies import JSON, Handler, JsonRoute, content_type, with_json
from patchbay_server.schemas import MAX_INPUTS, ModelRequest, Number

FORM = "multipart/form-data"
READERS = 2
AXES = 3  # of a signal: trials, channels, samples
_FILE = "patchbay.recording"
NPY_MAGIC = b"\x93NUMPY"
MAX_REQUEST = 1 << 20  # bytes of the JSON beside a file
# What other tools call a field -> the field.
_MEANT = {
    **dict.fromkeys(("sampling_rate", "sampling_frequency", "sample_rate", "srate", "fs", "rate"), "sfreq"),
    **dict.fromkeys(("channels", "channel_names", "ch_name", "names"), "ch_names"),
    **dict.fromkeys(("ch_pos", "ch_pos_m", "positions", "electrodes"), "ch_pos_mm"),
    **dict.fromkeys(("data", "eeg", "x", "X", "samples", "input"), "signal"),
    **dict.fromkeys(("line_hz", "line_noise", "notch", "powerline"), "line_freq"),
    **dict.fromkeys(("window", "window_seconds", "window_size"), "window_s"),
    **dict.fromkeys(("stride", "stride_seconds", "step"), "stride_s"),
    **dict.fromkeys(("onset", "events"), "onsets"),
    **dict.fromkeys(("units",), "unit"),
}
ChannelName = Annotated[str, Field(min_length=1, max_length=100)]
Channels = Annotated[list[ChannelName], Field(min_length=1, max_length=MOST_CHANNELS)]
Place = tuple[Number, Number, Number]
Samples = npt.NDArray[np.float64]
Unit = Annotated[
    Literal["uV", "mV", "V"], BeforeValidator(lambda given: plain_unit(given) if isinstance(given, str) else given)
]


class RecordingRequest(ModelRequest):
    """`signal`: [channels][samples], or [trials][channels][samples]; not beside a file. `sfreq` in Hz, `unit` and
    `ch_names` are needed with numbers; EDF and BDF files have their own, and `unit` then says what theirs should have
    been. What is left out of the rest is as the model was trained.
    """

    signal: list[Any] | None = None
    sfreq: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    unit: Unit | None = None
    ch_names: Channels | None = None
    ch_pos_mm: Annotated[dict[ChannelName, Place], Field(max_length=MOST_CHANNELS)] | None = None
    reference: Literal["recorded", "average"] | None = None
    line_freq: Number | None = None
    window_s: Number | None = None
    stride_s: Number | None = None
    onsets: Annotated[list[Number], Field(min_length=1, max_length=MAX_INPUTS)] | None = None
    reject: StrictBool | None = None

    @model_validator(mode="before")
    @classmethod
    def _names_the_field(cls, given: Any) -> Any:
        """Raises InputError for a field by the name that another tool has for it."""
        for name in given if isinstance(given, dict) else ():
            if name in _MEANT and name not in cls.model_fields:
                raise InputError(f"there is no field {name!r} here: {_MEANT[name]!r} is meant perhaps", param=name)
        return given


class EegEmbedRequest(RecordingRequest):
    encoding_format: Literal["float", "base64"] = "float"


class Turns:
    """So many recordings are read at a time: each takes many times its bytes while it is."""

    def __init__(self, count: int) -> None:
        self._free = BoundedSemaphore(count)

    @contextmanager
    def taken(self, patience: Patience) -> Iterator[None]:
        """Raises what `patience` raises."""
        while not self._free.acquire(timeout=LOOK_S):
            patience.check()
        try:
            yield
        finally:
            self._free.release()


_PARTS = {
    "request": {"type": "string", "description": "The JSON body, without a signal.", "contentMediaType": JSON},
    "file": {"type": "string", "description": "EDF, BDF or .npy.", "format": "binary"},
}
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "content": {FORM: {"schema": {"type": "object", "properties": _PARTS, "required": ["request", "file"]}}}
    }
}


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 40  # a file on disk would keep the patient's name there


class RecordingRoute(JsonRoute):
    """A route whose body is JSON, or a form whose part `request` is that JSON and whose part `file` a recording."""

    accepts: ClassVar[tuple[str, ...]] = (JSON, FORM)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            return await handle(await _as_json(request) if content_type(request) == FORM else request)

        return translated


def file_of(request: Request) -> bytes | None:
    """The form's file; None where the body was JSON."""
    found: bytes | None = request.scope.get(_FILE)
    return found


def recordings_of(asked: RecordingRequest, file: bytes | None) -> list[Recording]:
    """One, or one a trial. Raises InputError, which names what is missing, given twice or wrong."""
    if file is None:
        if asked.signal is None:
            raise InputError("send a signal, or a form with a file", param="signal")
        return _of_numbers(asked, _array(asked.signal))
    if asked.signal is not None:
        raise InputError("the form has a file already: leave the signal out", param="signal")
    if file.startswith(NPY_MAGIC):
        return _of_numbers(asked, _npy(file))
    found = edf.read(file, unit=asked.unit).recording
    for name in ("sfreq", "ch_names"):
        if getattr(asked, name) is not None:
            raise InputError(f"an EDF or BDF file says it itself: leave {name!r} out", param=name)
    return [replace(found, positions=asked.ch_pos_mm)]


def _of_numbers(asked: RecordingRequest, signal: Samples) -> list[Recording]:
    if asked.sfreq is None or asked.unit is None or asked.ch_names is None:
        name = next(name for name in ("sfreq", "unit", "ch_names") if getattr(asked, name) is None)
        raise InputError(f"{name!r} is needed: numbers alone do not say what they are", param=name)
    if signal.ndim not in (2, 3) or not signal.size:
        raise InputError(
            f"a signal has channels and samples, or trials of them, not the shape {list(signal.shape)}", param="signal"
        )
    trials = signal[None] if signal.ndim == 2 else signal
    if len(trials) > MAX_INPUTS:
        raise InputError(f"{len(trials)} trials are more than {MAX_INPUTS}", param="signal")
    names = tuple(asked.ch_names)
    return [Recording(trial, asked.sfreq, names, asked.unit, asked.ch_pos_mm) for trial in trials]


def _array(nested: list[Any]) -> Samples:
    try:
        found = np.array(nested)
        if found.dtype.kind not in "fiu":
            raise TypeError
        return found.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        reason = _uneven(nested) or "it holds what is no number"
        raise InputError(f"the signal is no rectangular array of numbers: {reason}", param="signal") from error


def _uneven(nested: list[Any]) -> str | None:
    """Where nested lists are no array; None where their lengths are not why."""
    level: list[tuple[str, list[Any]]] = [("signal", nested)]
    for _ in range(AXES):
        first, row = level[0]
        other = next(((where, len(each)) for where, each in level if len(each) != len(row)), None)
        if other is not None:
            return f"{other[0]} has the length {other[1]}, and {first} {len(row)}"
        are_lists = {isinstance(item, list) for _, each in level for item in each}
        if len(are_lists) > 1:
            return "lists and single values are side by side"
        if are_lists != {True}:
            return None
        level = [(f"{where}[{number}]", item) for where, each in level for number, item in enumerate(each)]
    return None


def _npy(file: bytes) -> Samples:
    """Its header is looked at before anything is allocated: it may claim any size."""
    stream = io.BytesIO(file)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        if dtype.kind not in "fiu":
            raise ValueError(f"it holds {dtype}, which are no numbers")
        if math.prod(shape) * dtype.itemsize != len(file) - stream.tell():
            raise ValueError(f"{list(shape)} of {dtype} are not the bytes that follow")
        stream.seek(0)
        return np.asarray(np.load(stream, allow_pickle=False), np.float64)
    except Exception as error:  # whatever a hostile header provokes in numpy
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"this is no .npy file that can be read: {reason}", param="file") from error


def _check_whole(asked: str) -> None:
    """Raises InputError for JSON that ends within a text: curl's -F takes `;` for the end of the value."""
    try:
        json.loads(asked)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated string"):
            raise InputError(
                f"'request' ends within a text, after {asked[-20:]!r}: curl's -F cuts at ';', --form-string does not",
                param="request",
            ) from error
    except (ValueError, RecursionError):
        return  # whoever reads the body says it


async def _as_json(request: Request) -> Request:
    """Raises InputError for a form that cannot be read, or of other parts."""
    try:
        parser = _InMemory(request.headers, request.stream(), max_files=1, max_fields=2, max_part_size=MAX_REQUEST)
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:  # KeyError: it says nothing of its boundary
        raise InputError(f"the form cannot be read: {getattr(error, 'message', error)}", param="file") from error
    try:
        asked, file = form.get("request"), form.get("file")
        if isinstance(file, str):
            raise InputError("'file' came as text, not as a file: with curl it is -F file=@NAME", param="file")
        names = sorted(name for name, _ in form.multi_items())
        if names != ["file", "request"] or not isinstance(asked, str) or not isinstance(file, UploadFile):
            raise InputError("a form has two parts: 'request', JSON, and 'file', a recording", param="file")
        _check_whole(asked)
        changed = with_json(request, asked.encode())
        changed.scope[_FILE] = await file.read()
        return changed
    finally:
        await form.close()
