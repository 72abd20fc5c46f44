"""What goes wrong as OpenAI's clients expect it: a status and an error object, ``{"error": {message, type, param, code}}``.

What the package raises on purpose is told in its own words, without the paths of this machine; anything else is one sentence, and the rest
of it goes into the log. Knows nothing of routes.
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
from ..common.validation import printable

log = logging.getLogger(__name__)

INVALID, SERVER_ERROR = "invalid_request_error", "server_error"
#: An absolute path of this machine, of at least two parts; or one that begins with a drive.
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.+@~-]+){2,}/?|\b[A-Za-z]:\\[^\s'\";,]+")
#: Most of what pydantic was given that is told again.
_SHOWN = 60
#: Characters of an error, in which a downloaded file or a template may speak.
_LONGEST = 1000


class RefusedError(Exception):
    """An answer that is an error. param: the field that is wrong; code: which of OpenAI's, if it is one of theirs."""

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
        """The error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """As it is sent."""
        return JSONResponse(self.body, self.status, self.headers)


def refusal_of(error: BaseException) -> RefusedError:
    """What is answered for an error, whatever it is."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    message = printable(without_paths(" ".join(str(error).split())), _LONGEST)
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
    log.error("a request failed, and the server goes on", exc_info=error)
    return RefusedError(500, "something went wrong inside the server; its log says what", kind=SERVER_ERROR)


def without_paths(message: str) -> str:
    """The same message without where things lie on this machine."""
    return _PATH.sub("(a path)", message)


def _invalid(error: ValidationError) -> RefusedError:
    """The first field that is wrong, and all that may stand there. (Lists end at their first wrong item, so errors are few.)"""
    found = error.errors(include_url=False, include_context=False)
    param = _param(found[0]["loc"])
    reasons = dict.fromkeys(_reason(each) for each in found if _param(each["loc"]) == param)
    given = f"; it is {shown(found[0]['input'])}" if found[0]["type"] not in ("missing", "value_error", "extra_forbidden") else ""
    where = f"{param}: " if param else ""
    return RefusedError(400, f"{where}{', or '.join(reasons)}{given}", param=param, code="invalid_value")


def _reason(found: Mapping[str, Any]) -> str:
    if found["type"] == "missing":
        return "this field is required"
    if found["type"] == "extra_forbidden":
        return "there is no such field; fields are rule, alpha, block_size, fidelity, audit, origins, logprobs_of and model_logprobs"
    text: str = found["msg"]
    return text.removeprefix("Value error, ")


def _param(place: Sequence[str | int]) -> str | None:
    """``messages.0.content``; what pydantic adds to tell the kinds of a union apart is left out."""
    parts = [part for before, part in zip((None, *place), place) if before != "response_format"]  # behind it stands its kind
    names = [str(part) for part in parts if isinstance(part, int) or (re.fullmatch(r"[a-z_]+", part) and part not in _KINDS)]
    return ".".join(names) or None


_KINDS = {"str", "int", "float", "bool", "none", "text", "list", "dict"}


def shown(value: object) -> str:
    """A value that somebody sent, short."""
    text = repr(value) if not isinstance(value, (list, dict)) else f"{type(value).__name__} of {len(value)}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
