"""An answer to every request at the front, whatever fails there. Plain ASGI. Knows no route and no replica."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchbay.errors import EngineFailed, PatchbayError
from patchbay_server.errors import error_body, respond, unexpected

logger = logging.getLogger("patchbay_server")


@dataclass(frozen=True, slots=True)
class Answered:
    """Turns what `app` raises into answers, as FastAPI does for a server of one process."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except ClientDisconnect:
            return
        except Exception as error:
            if begun or scope["type"] != "http":
                raise  # all that is left is to end the connection
            await _answer_to(error)(scope, receive, noted)


def _answer_to(error: Exception) -> Response:
    if isinstance(error, PatchbayError):
        logger.log(logging.ERROR if isinstance(error, EngineFailed) else logging.INFO, "%s", error.message)
        return respond(error)
    if isinstance(error, HTTPException):  # of a body that is too large
        return JSONResponse(error_body(error.detail, error.status_code, "body_too_large"), error.status_code)
    return unexpected(error)
