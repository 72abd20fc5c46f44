"""All routes as one ASGI application: text by OpenAI's protocol, what there is, how it fares, and the page. Knows nothing of ports."""

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
from .http.security import Guard, ProtectedAnswers
from .listing import Listing, description
from .metrics import CONTENT_TYPE, Metrics
from .request_settings import ServedPairs
from .streams import ClientGoneError

PAGE = Path(__file__).parent / "page"
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    engine: Engine,
    *,
    policy: Policy | None = None,
    rules: Mapping[str, Method] | None = None,
    timeout_s: float | None = None,
    aliases: Mapping[str, str] | None = None,
    any_model: bool = False,
) -> ASGIApp:
    """The application over an engine, which the caller closes.

    policy: who may ask; without one, programs of this machine. rules: the user's own, by the names that requests use.
    timeout_s: for each request, waiting included. aliases: further names of pairs. any_model: answer every name by the only pair. Raises
    SettingError for names that do not go together.
    """
    policy = policy or Policy()
    offer, metrics = ServedPairs(engine.pairs, rules or {}, aliases or {}, any_model), Metrics(engine)
    large = LargeRequests()
    asking, listing = Completions(engine, offer, metrics, timeout_s, large), Listing(offer, int(time.time()), large)

    async def metered(_: Request) -> Response:
        return Response(await asyncio.to_thread(metrics.text), media_type=CONTENT_TYPE)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def described(_: Request) -> Response:
        return JSONResponse(description())

    async def page(_: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def no_embeddings(_: Request) -> Response:
        raise RefusedError(400, "a pair of language models makes no embeddings; ask a server with an embedding model", code="not_supported")

    posts: dict[str, Endpoint] = {
        "/v1/chat/completions": asking.chat,
        "/v1/completions": asking.complete,
        "/v1/embeddings": no_embeddings,
        "/tokenize": listing.tokenize,
        "/detokenize": listing.detokenize,
    }
    gets: dict[str, Endpoint] = {
        "/v1/models": listing.models,
        "/v1/models/{model:path}": listing.model,
        "/api/pairs": listing.pairs,
        "/metrics": metered,
        "/health": health,
        "/v1/health": health,
        "/openapi.json": described,
    }
    routes: list[BaseRoute] = [Route(path, _json_response(each, metrics), methods=["POST"]) for path, each in posts.items()]
    routes += [Route(path, _json_response(each, metrics), methods=["GET"]) for path, each in gets.items()]
    if PAGE.is_dir():
        routes += [Route("/", page, methods=["GET"]), Mount("/static", StaticFiles(directory=PAGE))]
    app: ASGIApp = _with_single_slashes(Guard(Starlette(routes=routes, exception_handlers={HTTPException: _refusal_response}), policy))
    if policy.origins:
        app = CORSMiddleware(app, policy.origins, allow_methods=["GET", "POST"], allow_headers=["*"])  # clients add headers of their own
    return ProtectedAnswers(app)


def _with_single_slashes(app: ASGIApp) -> ASGIApp:
    """``//v1/models`` is ``/v1/models``: clients put a path behind a base that ends with a slash."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "path": re.sub("/{2,}", "/", scope["path"])} if scope["type"] == "http" else scope, receive, send)

    return call


def _json_response(endpoint: Endpoint, metrics: Metrics) -> Endpoint:
    """Whatever goes wrong is answered too."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientGoneError:
            return Response(status_code=499)  # for the log alone
        except Exception as error:
            refusal = refusal_of(error)
            metrics.refused(refusal.status)
            return refusal.response

    return answer


async def _refusal_response(request: Request, error: Exception) -> Response:
    """No such route, or not by that method."""
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is nothing at {request.url.path:.80}; /openapi.json lists what there is",
        405: f"{request.url.path:.80} does not answer to {request.method:.20}",
    }
    return RefusedError(error.status_code, messages.get(error.status_code, error.detail), code=None, headers=error.headers or {}).response
