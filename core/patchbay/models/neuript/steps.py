"""What is done to a recording before a model reads it: part of what the model's input means, and kept in its config.

Knows nothing of how it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from patchbay.errors import InputError, complaint

RATE = 64  # in Hz
MOST_SECONDS = 120.0
MOST_CHANNELS = 256
Seconds = Annotated[FiniteFloat, Field(ge=1 / RATE, le=MOST_SECONDS)]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Steps:
    """`channels`: those to read, by name, in this order; None reads all. `pairs`: bipolar channels to make, `Fp1-F7`;
    None leaves channels as they are recorded. `line_hz`: of the mains.

    `stride_seconds` is the window's length by default. `rejects`: windows that are too loud, flat or off zero are left
    out, as in pre-training. `onset_seconds`: where a window begins after an event; None fills events with windows.
    """

    window_seconds: Seconds = 4.0
    stride_seconds: Seconds | None = None
    reference: Literal["recorded", "average"] = "recorded"
    channels: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_CHANNELS)] | None = None
    pairs: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_CHANNELS)] | None = None
    line_hz: Annotated[FiniteFloat, Field(ge=40, le=70)] | None = None
    band_hz: tuple[Annotated[FiniteFloat, Field(gt=0, lt=RATE / 2)], Annotated[FiniteFloat, Field(le=RATE / 2)]] = (
        0.1,
        30.0,
    )
    rejects: bool = True
    onset_seconds: Annotated[FiniteFloat, Field(ge=-MOST_SECONDS, le=MOST_SECONDS)] | None = None

    @field_validator("band_hz")
    @classmethod
    def _is_band(cls, found: tuple[float, float]) -> tuple[float, float]:
        if found[0] >= found[1]:
            raise ValueError(f"a band from {found[0]:g} to {found[1]:g} Hz is none")
        return found

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Steps:
        """As a model's config has them under `preprocessing`. Raises InputError, which names the field."""
        try:
            return TypeAdapter(cls).validate_python(dict(found))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"preprocessing.{place}: {complaint(first['msg'])}", param="preprocessing") from error

    def to_config(self) -> dict[str, Any]:
        """What `of` reads; defaults are written out, so that they stay what they were."""
        return asdict(self)
