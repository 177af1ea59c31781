"""Every error that Patchbay raises on purpose.

PatchbayError
├── BackboneError                the base model cannot be loaded or served
│   ├── UnsupportedBackbone      quantised, needs remote code, pickled, unknown architecture
│   ├── UnsupportedTask          the backbone cannot do what was asked (classify with a causal LM)
│   ├── PatchInProgress          a second patch while one is applied
│   ├── ShuttingDown             the engine was stopped while it answered
│   ├── EngineFailed             the engine's thread died while it answered; it is started again
│   ├── QueueFull                as many requests wait as may
│   ├── CacheFull                more pinned in memory than its budget
│   ├── DeadlineExceeded         the request's own time was over before its answer
│   └── Cancelled                whoever asked has gone
├── InputError                   what was sent to the model cannot be read (image, array, text)
├── FinetuneMismatch             a fine-tuned checkpoint does not fit its base
├── DeltaError                   a delta file cannot be accepted
│   ├── UnsupportedFile          pickle, .bin, .pt: not safetensors at all
│   ├── DeltaTooLarge            over a size cap, before anything was allocated
│   ├── MalformedDelta           breaks a rule of FORMAT.md
│   ├── WrongBase                made for another backbone
│   ├── UnknownTensor            names a tensor that the backbone does not have
│   ├── WrongShape               a tensor's shape differs from the backbone's
│   └── NonFiniteValue           NaN or infinity
├── RecipeError                  a merge that cannot be made
│   ├── InvalidExpression        text that the grammar cannot parse; shows the place
│   ├── UnknownMethod            no such merging method; lists those that exist
│   ├── InvalidRecipe            parsed, but cannot mean anything (weights, terms, parameters)
│   └── AmbiguousHead            several heads could answer, or none
└── StoreError
    ├── InvalidName              not a name: [a-z0-9][a-z0-9._-]{0,62}, or reserved
    ├── NotFound                 no such delta, version, merge or blob; lists close names
    ├── NameTaken                the name belongs to something else
    ├── VersionConflict          someone else changed it first (compare-and-set)
    ├── UploadConflict           a part of an upload that does not continue it, or of another length
    ├── ImportConflict           a store that has something else where an import has something
    ├── DeltaInUse               a saved merge is made of what is to be deleted
    ├── InvalidKey               an API key that nobody could use
    ├── QuotaExceeded            more than its tenant may store
    ├── StoreFull                no space left for the blob or the catalog
    └── StoreUnavailable         the catalog or blob store does not answer

Each class carries `code`, the machine-readable name that the HTTP API and `--json` show; what status a code maps to is
the service's business. This module knows nothing of HTTP.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PatchbayError(Exception):
    """Base of all deliberate errors. `param` names the offending field, tensor or file, where there is one;
    `outside` is what those hear who ask a server: the message, unless that is for the operator.
    """

    code = "error"

    def __init__(self, message: str, *, param: str | None = None, outside: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.outside = message if outside is None else outside


class BackboneError(PatchbayError):
    code = "backbone_error"


class UnsupportedBackbone(BackboneError):
    code = "unsupported_backbone"


class UnsupportedTask(BackboneError):
    code = "unsupported_task"


class PatchInProgress(BackboneError):
    code = "patch_in_progress"


class ShuttingDown(BackboneError):
    code = "shutting_down"


class EngineFailed(BackboneError):
    code = "engine_failed"


class QueueFull(BackboneError):
    code = "queue_full"


class CacheFull(BackboneError):
    code = "cache_full"


class DeadlineExceeded(BackboneError):
    code = "deadline_exceeded"


class Cancelled(BackboneError):
    code = "cancelled"


class InputError(PatchbayError):
    code = "invalid_input"


class FinetuneMismatch(PatchbayError):
    code = "finetune_mismatch"


class DeltaError(PatchbayError):
    code = "invalid_delta"


class UnsupportedFile(DeltaError):
    code = "unsupported_file"


class DeltaTooLarge(DeltaError):
    code = "delta_too_large"


class MalformedDelta(DeltaError):
    code = "malformed_delta"


class WrongBase(DeltaError):
    code = "wrong_base"


class UnknownTensor(DeltaError):
    code = "unknown_tensor"


class WrongShape(DeltaError):
    code = "wrong_shape"


class NonFiniteValue(DeltaError):
    code = "non_finite_value"


class RecipeError(PatchbayError):
    code = "recipe_error"


class InvalidExpression(RecipeError):
    """Text that the expression grammar cannot parse; the message shows the text with a caret under `position`."""

    code = "invalid_expression"

    def __init__(self, reason: str, text: str, position: int) -> None:
        super().__init__(f"{reason}\n  {text}\n  {' ' * position}^", param="model")
        self.reason = reason
        self.position = position


class UnknownMethod(RecipeError):
    code = "unknown_method"


class InvalidRecipe(RecipeError):
    code = "invalid_recipe"


class AmbiguousHead(RecipeError):
    code = "ambiguous_head"


class StoreError(PatchbayError):
    code = "store_error"


class InvalidName(StoreError):
    code = "invalid_name"


class NotFound(StoreError):
    code = "not_found"

    @classmethod
    def named(cls, kind: str, name: str, known: Iterable[str] = (), *, param: str | None = None) -> NotFound:
        """`NotFound` for a name, listing at most three close ones among `known`."""
        close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"; close names: {', '.join(close)}" if close else ""
        return cls(f"there is no {kind} {name!r}{hint}", param=param)


class NameTaken(StoreError):
    code = "name_taken"


class VersionConflict(StoreError):
    code = "version_conflict"


class UploadConflict(StoreError):
    code = "upload_conflict"


class ImportConflict(StoreError):
    code = "import_conflict"


class DeltaInUse(StoreError):
    code = "delta_in_use"


class InvalidKey(StoreError):
    code = "invalid_key"


class QuotaExceeded(StoreError):
    code = "quota_exceeded"


class StoreFull(StoreError):
    code = "store_full"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """The message may name hosts, buckets and folders, which are nobody's business but the operator's."""
        outside = "the store has no room left: delete what is not needed, or tell its operator"
        super().__init__(message, param=param, outside=outside)


class StoreUnavailable(StoreError):
    code = "store_unavailable"

    def __init__(
        self, message: str, *, param: str | None = None, part: str = "the store", outside: str | None = None
    ) -> None:
        """The message may name hosts, buckets and folders, which are nobody's business but the operator's: others hear
        which `part` of the service is away, or what `outside` says.
        """
        away = f"{part} does not answer as it should: ask again in a moment, and look before you repeat a change"
        super().__init__(message, param=param, outside=outside or away)

    @classmethod
    def plain(cls, message: str) -> StoreUnavailable:
        """The same words for everybody."""
        return cls(message, outside=message)


def complaint(message: str) -> str:
    """What a validator of ours said, without the words that pydantic puts before it."""
    return message.removeprefix("Value error, ")
