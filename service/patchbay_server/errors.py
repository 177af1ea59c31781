"""One error shape for every route, OpenAI's: `{"error": {"message", "type", "param", "code"}}`.

The library's exceptions know no HTTP; this table is where they get their status.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from patchbay import errors
from patchbay_server.access import METHODS, Forbidden
from patchbay_server.bodies import MAX_SHOWN, JsonRoute, content_type, is_json
from patchbay_server.jobs.base import IdempotencyConflict
from patchbay_server.limits import LimitReached, OverLimit
from patchbay_server.logs import note

logger = logging.getLogger("patchbay_server")


class Unauthorized(errors.PatchbayError):
    """No key, or not the right one."""

    code = "unauthorized"


class UnsupportedParameter(errors.PatchbayError):
    """A field that OpenAI's API has and this server does not act on: refused, never ignored."""

    code = "unsupported_parameter"


class DigestMismatch(errors.PatchbayError):
    """The bytes of a blob are not those that its name promises."""

    code = "digest_mismatch"


class WrongOffset(errors.UploadConflict):
    """A part of an upload that does not begin where what is there ends."""

    def __init__(self, offset: int, given: int) -> None:
        super().__init__(f"the upload is at {offset}, and the part begins at {given}", param="Upload-Offset")
        self.headers = {"Upload-Offset": str(offset)}


STATUS: Mapping[type, int] = {
    errors.UnsupportedTask: 400,
    Unauthorized: 401,
    Forbidden: 403,
    errors.QuotaExceeded: 403,
    errors.NotFound: 404,
    errors.NameTaken: 409,
    errors.VersionConflict: 409,
    errors.UploadConflict: 409,
    errors.DeltaInUse: 409,
    errors.CacheFull: 409,
    errors.DeltaTooLarge: 413,
    errors.UnsupportedFile: 415,
    UnsupportedParameter: 422,
    DigestMismatch: 422,
    OverLimit: 422,
    IdempotencyConflict: 422,
    errors.InvalidName: 422,
    errors.InputError: 422,
    errors.FinetuneMismatch: 422,
    errors.DeltaError: 422,
    errors.RecipeError: 422,
    errors.StoreFull: 507,
    errors.StoreUnavailable: 503,
    errors.ShuttingDown: 503,
    errors.EngineFailed: 503,
    errors.QueueFull: 429,
    LimitReached: 429,
    errors.DeadlineExceeded: 504,
    errors.Cancelled: 499,  # what proxies call it: for the metrics, nobody else reads it
    errors.PatchbayError: 500,
}
_UNREADABLE = "There was an error parsing the body"  # FastAPI's words, whatever it was
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
}
_HTTP_CODES: Mapping[int, str] = {
    400: "invalid_request",
    404: "unknown_route",
    405: "method_not_allowed",
    413: "body_too_large",
}


def status_of(error: errors.PatchbayError) -> int:
    """The status of the nearest class in the table."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def error_body(message: str, status: int, code: str, param: str | None = None) -> dict[str, object]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: Exception) -> dict[str, Any]:
    """The `error` object of a failure that no request waits for."""
    if isinstance(error, errors.PatchbayError):
        body: Any = error_body(error.outside, status_of(error), error.code, error.param)
    else:
        body = error_body("the worker failed; the server's log says why", 500, "internal_error")
    return dict(body["error"])


def install(app: FastAPI) -> None:
    """Registers the handlers; every failure of the app goes through one of these three, or is `unexpected`."""
    app.add_exception_handler(errors.PatchbayError, _patchbay_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)


def _respond(
    message: str, status: int, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    note(code=code)
    if status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer"}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers = headers or {"Retry-After": "1"}  # in seconds
    return JSONResponse(error_body(message, status, code, param), status, headers)


def respond(error: errors.PatchbayError) -> JSONResponse:
    """The answer to a deliberate error."""
    headers = error.headers if isinstance(error, LimitReached | WrongOffset) else None
    return _respond(error.outside, status_of(error), error.code, error.param, headers)


async def _patchbay_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.PatchbayError)
    status = status_of(error)
    if isinstance(error, errors.QueueFull):
        request.app.state.metrics.refusals.inc()
    if status >= 500:
        logger.error("%s", error.message)
    return respond(error)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    # A list of which a member is bad also complains that it has too few good ones: only the member says why.
    worst = max((one for one in found if not _is_around(one, found)), key=_tells)
    if worst["type"] == "json_invalid":
        return _respond(f"the body is not JSON: {worst['ctx']['error']}", 422, "invalid_request")
    if worst["loc"] == ("body",) and not is_json(kind := content_type(request)):
        return _respond(_other_type(request, kind), 422, "invalid_request", "body")
    place = _place(worst["loc"])
    return _respond(f"{place}: {errors.complaint(worst['msg'])}", 422, "invalid_request", place)


def _other_type(request: Request, kind: str) -> str:
    accepts = getattr(request.scope.get("route"), "accepts", JsonRoute.accepts)
    found = f"'s Content-Type is {kind[:MAX_SHOWN]!r}" if kind else " has no Content-Type"
    return f"the body{found}: send {' or '.join(accepts)}"


def _is_around(one: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> bool:
    place = one["loc"]
    return any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in found)


def _tells(found: Mapping[str, Any]) -> tuple[bool, int, bool]:
    """A value may be one of several things, and each complains. A bad value of the right type was meant so; else the
    deepest complaint is about the one that was meant, and a wrong type says more than a field that another one has.
    """
    misfit = found["type"] in ("missing", "extra_forbidden")
    wrong_type = found["type"].endswith("_type")
    return not misfit and not wrong_type, len(found["loc"]), wrong_type


def _place(location: Sequence[str | int]) -> str:
    """`input.0.image`: without pydantic's names for the members of a union, which are no fields."""
    root, *path = map(str, location)
    inside = [part for part in path[1:] if re.fullmatch("[0-9]+|[a-z][a-z0-9_]*", part)]
    return ".".join([*path[:1], *inside]) or root


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    message = str(error.detail)
    if message == _UNREADABLE:
        message = (
            "the body is no JSON that can be read: it is compressed or no UTF-8, is nested too deeply, or has a number "
            "of too many digits"
        )
    headers = error.headers
    if code == "unknown_route":
        message = f"there is no route {request.method} {request.url.path[:200]}"
    elif code == "method_not_allowed":
        message, headers = _other_methods(request, error)
    return _respond(message, error.status_code, code, headers=headers)


def _other_methods(request: Request, error: HTTPException) -> tuple[str, Mapping[str, str] | None]:
    """Each method of a path is a route of its own: the one that refused knows only its own."""
    template = getattr(request.scope.get("route"), "path_format", "")
    methods = ", ".join(sorted(METHODS.get(template, ())))
    headers = {"Allow": methods} if methods else error.headers
    return f"{request.method} is not for this path: send {(headers or {}).get('Allow')}", headers


def unexpected(error: Exception) -> JSONResponse:
    """The answer to what nobody meant to raise. Its message may hold anything, so the caller does not hear it."""
    logger.error("a request failed", exc_info=error)
    return _respond("the server failed; its log says why", 500, "internal_error")
