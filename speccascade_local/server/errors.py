"""Exceptions as OpenAI's clients expect them: a status and an error object, ``{"error": {message, type, param, code}}``.

Errors that the package raises on purpose keep their message, without paths of this machine. Of any other the client gets one sentence, and
the log the rest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from ..common.errors import (
    ContextOverflowError,
    EngineBusyError,
    EngineError,
    EngineTimeoutError,
    PromptError,
    SettingError,
    SpeccascadeError,
)
from ..common.validation import printable, short_repr

log = logging.getLogger(__name__)

INVALID, SERVER_ERROR = "invalid_request_error", "server_error"
#: An absolute path of at least two parts, or one that begins with a drive.
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.+@~-]+){2,}/?|\b[A-Za-z]:\\[^\s'\";,]+")
#: Maximum number of characters of a message, parts of which may come from a model file or its template.
_MAX_MESSAGE = 1000


class RefusedError(Exception):
    """A response that is an error: ``param`` is the wrong field, ``code`` names the error for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def refusal_of(error: BaseException) -> RefusedError:
    """Return the error response for any exception."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    message = printable(without_paths(" ".join(str(error).split())), _MAX_MESSAGE)
    if isinstance(error, EngineBusyError):
        seconds = str(max(1, round(error.retry_after_s)))
        return RefusedError(429, message, kind="rate_limit_error", code="queue_full", headers={"Retry-After": seconds})
    if isinstance(error, EngineTimeoutError):
        return RefusedError(504, message, kind="timeout_error", code="timeout")
    if isinstance(error, EngineError):
        return RefusedError(503, message, kind=SERVER_ERROR, code="closing")
    if isinstance(error, ContextOverflowError):
        return RefusedError(400, message, code="context_length_exceeded")
    if isinstance(error, (PromptError, SettingError)):
        return RefusedError(400, message)
    if isinstance(error, SpeccascadeError):
        log.warning("a request failed: %s", " ".join(str(error).split()))
        return RefusedError(503, message, kind=SERVER_ERROR)
    log.error("a request failed; the server continues", exc_info=error)
    return RefusedError(500, "something went wrong inside the server; see its log", kind=SERVER_ERROR)


def without_paths(message: str) -> str:
    """Return a message with every path of this machine replaced."""
    return _PATH.sub("(a path)", message)


def _invalid(error: ValidationError) -> RefusedError:
    """Return a refusal that names the first wrong field and all that it may hold."""
    problems = error.errors(include_url=False, include_context=False)  # few, because lists end at their first wrong item
    first, param = problems[0], _param(problems[0]["loc"])
    reasons = dict.fromkeys(_reason(each) for each in problems if _param(each["loc"]) == param)
    value = f"; it is {short_repr(first['input'], 60)}" if first["type"] not in ("missing", "value_error", "extra_forbidden") else ""
    where = f"{param}: " if param else ""
    return RefusedError(400, f"{where}{', or '.join(reasons)}{value}", param=param, code="invalid_value")


def _reason(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "missing":
        return "this field is required"
    if problem["type"] == "extra_forbidden":
        return "unknown field; allowed are rule, alpha, block_size, fidelity, audit, origins, logprobs_of and model_logprobs"
    text: str = problem["msg"]
    return text.removeprefix("Value error, ")


def _param(location: Sequence[str | int]) -> str | None:
    """Return ``messages.0.content`` for a pydantic location, without the tags that it adds for the members of a union."""
    parts = [part for before, part in zip((None, *location), location) if before != "response_format"]  # its member follows it
    names = [str(part) for part in parts if isinstance(part, int) or (re.fullmatch(r"[a-z_]+", part) and part not in _KINDS)]
    return ".".join(names) or None


_KINDS = {"str", "int", "float", "bool", "none", "text", "list", "dict"}
