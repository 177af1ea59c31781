"""Bodies of requests, as pydantic models: strict about unknown fields, booleans, and numbers that are not finite."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
)

from patchbay.merge import Recipe

MAX_INPUTS = 2048
MAX_TEXT = 1 << 22
# The bound also makes pydantic look at every character: half a surrogate pair is refused here, not by a tokenizer.
Text = Annotated[str, Field(max_length=MAX_TEXT)]
ModelName = Annotated[str, Field(min_length=1, max_length=2000)]
DIGEST = r"^sha256:[0-9a-f]{64}$"
DigestPath = Annotated[str, Path(pattern=DIGEST)]
BlobDigest = Annotated[str, Field(pattern=DIGEST, description="sha256: and 64 hex digits.")]
HeadName = Annotated[str, Field(min_length=1, max_length=100)]
Number = Annotated[FiniteFloat, Field(strict=True)]  # neither a text that looks like one nor true


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageItem(Body):
    """A PNG or JPEG, base64."""

    image: str


class ArrayItem(Body):
    """One input exactly as the model takes it: nested lists of numbers."""

    array: list[Any]


Item = Text | ImageItem | ArrayItem


class ModelRequest(Body):
    """`model` names the base, a delta, a saved merge or an expression; `patch` is a recipe in full, with the base as
    model.
    """

    model: ModelName
    patch: Recipe | None = None
    head: HeadName | None = None
    path: Literal["patched", "decoupled"] | None = None
    timeout: Annotated[Number, Field(gt=0, le=86400)] | None = None


class ClassifyRequest(ModelRequest):
    input: Item | Annotated[list[Item], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingsRequest(ModelRequest):
    input: Item | Annotated[list[Item], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class MergeRequest(Body):
    """`recipe` in full or as an expression. `follow` tracks the deltas' current versions instead of pinning digests."""

    name: str
    recipe: Recipe | ModelName
    follow: StrictBool = False


class DocumentQuery(Body):
    """The query of a mergekit document: what a JSON body has beside `recipe`. Text, so that `follow` is not strict."""

    name: str
    follow: bool = False


class PreviewRequest(Body):
    """`recipe` in full or as an expression."""

    recipe: Recipe | ModelName


class CompressionRequest(Body):
    """`files`: file name -> blob. At most one of `density`, `target_size` (bytes) and `target_kl`. `labels` is a blob
    with a class for each input of `calibration`, one a line, for a `score` that needs them. What is left out is the
    library's default.
    """

    name: Annotated[str, Field(max_length=200)]
    files: Annotated[dict[Annotated[str, Field(max_length=1000)], BlobDigest], Field(min_length=1, max_length=1000)]
    method: Annotated[str, Field(max_length=100)] | None = None
    density: FiniteFloat | None = None
    target_size: Annotated[StrictInt, Field(ge=1)] | None = None
    target_kl: Annotated[FiniteFloat, Field(gt=0)] | None = None
    values: Annotated[str, Field(max_length=100)] | None = None
    scale: FiniteFloat | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=1 << 63)] | None = None
    exact: StrictBool | None = None
    support: Annotated[str, Field(max_length=100)] | None = None
    scope: Annotated[str, Field(max_length=100)] | None = None
    groups: StrictInt | None = None
    evaluations: StrictInt | None = None
    optimizer: Annotated[str, Field(max_length=100)] | None = None
    score: Annotated[str, Field(max_length=100)] | None = None
    merge_statistics: StrictBool | None = None
    distil: StrictBool | None = None
    calibration: BlobDigest | None = None
    labels: BlobDigest | None = None
    activate: StrictBool = True


class TransferRequest(Body):
    """`model` is a delta, `name` or `name@version`; `calibration` a blob of inputs of its task, `retained` one of what
    the base could do before, by default the same. With `labels`, a class a line, target is accuracy; with
    `retained_labels`, classes of the base's own head, retained is.
    """

    model: ModelName
    scales: Annotated[list[FiniteFloat], Field(min_length=1, max_length=100)]
    calibration: BlobDigest
    labels: BlobDigest | None = None
    retained: BlobDigest | None = None
    retained_labels: BlobDigest | None = None


class PublishRequest(Body):
    """Bytes that are there already, as the next version of a name."""

    blob: BlobDigest
    activate: StrictBool = True


class PresignRequest(Body):
    """What will be put."""

    blob: BlobDigest
    length: Annotated[int, Field(ge=0, strict=True)]


class CurrentRequest(Body):
    """`expected` makes it a compare-and-set on the version that is current now."""

    version: Annotated[int, Field(ge=1, strict=True)]
    expected: Annotated[int, Field(ge=1, strict=True)] | None = None
