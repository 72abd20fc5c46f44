"""The server as one ASGI application: routes, error responses, access checks and the page."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from ..rules.rule import Method
from .completions import Completions
from .engine import Engine
from .errors import RefusedError, refusal_of
from .http.large_requests import LargeRequests
from .http.policy import Policy
from .http.security import Guard, ProtectedResponses
from .listing import ENDPOINTS, Listing, description
from .metrics import CONTENT_TYPE, Metrics
from .request_settings import ServedPairs
from .streams import ClientGoneError

PAGE = Path(__file__).parent / "page"
Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    engine: Engine,
    *,
    policy: Policy | None = None,
    rules: Mapping[str, Method] | None = None,
    timeout_s: float | None = None,
    aliases: Mapping[str, str] | None = None,
    any_model: bool = False,
) -> ASGIApp:
    """Return the application over an engine, which the caller closes. Raises SettingError for names that cannot be served together.

    Args:
        engine: Answers the requests.
        policy: Who may ask; by default programs on this machine.
        rules: The user's own rules, by the names that requests use.
        timeout_s: Limit for each request in seconds, waiting included.
        aliases: More names of pairs, each with the pair's own name.
        any_model: Answer every model name with the only pair.
    """
    policy = policy or Policy()
    models, metrics, large = ServedPairs(engine.pairs, rules or {}, aliases or {}, any_model), Metrics(engine), LargeRequests()
    completions, listing = Completions(engine, models, metrics, timeout_s, large), Listing(models, int(time.time()), large)

    async def show_metrics(_: Request) -> Response:
        return Response(await asyncio.to_thread(metrics.text), media_type=CONTENT_TYPE)

    async def show_health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_description(_: Request) -> Response:
        return JSONResponse(description())

    async def show_page(_: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def refuse_embeddings(_: Request) -> Response:
        raise RefusedError(400, "a pair of language models makes no embeddings; ask a server with an embedding model", code="not_supported")

    handlers: dict[str, Handler] = {
        "/v1/chat/completions": completions.chat,
        "/v1/completions": completions.complete,
        "/v1/embeddings": refuse_embeddings,
        "/tokenize": listing.tokenize,
        "/detokenize": listing.detokenize,
        "/v1/models": listing.models,
        "/v1/models/{model}": listing.model,
        "/api/pairs": listing.pairs,
        "/metrics": show_metrics,
        "/health": show_health,
        "/v1/health": show_health,
        "/openapi.json": show_description,
    }
    routes: list[BaseRoute] = [
        Route(path.replace("{model}", "{model:path}"), _with_errors(handlers[path], metrics), methods=[endpoint.method])
        for path, endpoint in ENDPOINTS.items()
    ]
    if PAGE.is_dir():
        routes += [Route("/", show_page, methods=["GET"]), Mount("/static", StaticFiles(directory=PAGE))]
    app: ASGIApp = _with_single_slashes(Guard(Starlette(routes=routes, exception_handlers={HTTPException: _routing_error}), policy))
    if policy.origins:
        app = CORSMiddleware(app, policy.origins, allow_methods=["GET", "POST"], allow_headers=["*"])  # clients add headers of their own
    return ProtectedResponses(app)


def _with_single_slashes(app: ASGIApp) -> ASGIApp:
    """Read ``//v1/models`` as ``/v1/models``: clients append a path to a base URL that ends with a slash."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "path": re.sub("/{2,}", "/", scope["path"])} if scope["type"] == "http" else scope, receive, send)

    return call


def _with_errors(handler: Handler, metrics: Metrics) -> Handler:
    """Turn every exception of a handler into an error response."""

    async def respond(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGoneError:
            return Response(status_code=499)  # only the log sees it
        except Exception as error:
            refusal = refusal_of(error)
            metrics.count_refusal(refusal.status)
            return refusal.response

    return respond


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is nothing at {request.url.path:.80}; /openapi.json lists the routes",
        405: f"{request.url.path:.80} does not support the method {request.method:.20}",
    }
    return RefusedError(error.status_code, messages.get(error.status_code, error.detail), code=None, headers=error.headers or {}).response
