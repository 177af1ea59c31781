"""What surrounds every request at the front: an id that it keeps, and an answer whatever fails. Plain ASGI.

What a replica answers is logged by the replica; here is logged what comes to none. Knows no route.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchbay.errors import EngineFailed, PatchbayError
from patchbay_server.access_log import REQUEST_ID, request_id
from patchbay_server.errors import error_body, respond, unexpected
from patchbay_server.logs import About, current

logger = logging.getLogger("patchbay_server")


@dataclass(frozen=True, slots=True)
class Named:
    """Every request has an id, the caller's where it is well-formed, and every failure here is an answer."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        about, begun = About(request_id(Headers(scope=scope))), False
        token = current.set(about)

        async def named(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[REQUEST_ID] = about.request_id
            await send(message)

        try:
            await self.app(scope, receive, named)
        except ClientDisconnect:
            return
        except Exception as error:
            if begun:
                raise  # all that is left is to end the connection
            await _answer_to(error)(scope, receive, named)
        finally:
            current.reset(token)


def _answer_to(error: Exception) -> Response:
    if isinstance(error, PatchbayError):
        logger.log(logging.ERROR if isinstance(error, EngineFailed) else logging.INFO, "%s", error.message)
        return respond(error)
    if isinstance(error, HTTPException):  # of a body that is too large
        return JSONResponse(error_body(error.detail, error.status_code, "body_too_large"), error.status_code)
    return unexpected(error)
