"""The application: which route is answered by what."""

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..open_calls import OpenCalls
from .adapters import load_adapter, unload_adapter
from .chat import chat
from .completions import completions
from .errors import error_body
from .exchange import Endpoint, Exchange
from .metrics import metrics
from .models import list_models, show_model
from .probes import health, load, show_version
from .site import Site
from .tokens import detokenize, tokenize

Answer = Callable[[Site, Exchange], Coroutine[Any, Any, None]]

GENERATING: dict[str, Answer] = {"/v1/chat/completions": chat, "/v1/completions": completions}
POSTED: dict[str, Answer] = {
    "/v1/load_lora_adapter": load_adapter,
    "/v1/unload_lora_adapter": unload_adapter,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
GOTTEN: dict[str, Answer] = {
    "/v1/models": list_models,
    "/v1/models/{model:path}": show_model,
    "/health": health,
    "/ready": health,
    "/ping": health,
    "/version": show_version,
    "/load": load,
    "/metrics": metrics,
}
INSTEAD = {"/v1/responses": "/v1/responses is not served; send the conversation to /v1/chat/completions"}
SHOWN_HEADERS = ["X-Request-Id", "Retry-After", "Retry-After-Ms"]  # to the scripts of pages that may ask


def make_app(site: Site, allowed_origins: Sequence[str]) -> Starlette:
    others = OpenCalls()
    routes = [_route(site, path, ["POST"], answer, site.calls) for path, answer in GENERATING.items()]
    routes += [_route(site, path, ["POST"], answer, others) for path, answer in POSTED.items()]
    routes += [_route(site, path, _methods(path), answer, others) for path, answer in GOTTEN.items()]
    handlers: Any = {HTTPException: _refuse}
    middleware = [_cors(allowed_origins)] if allowed_origins else []
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def _cors(allowed_origins: Sequence[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=list(allowed_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=SHOWN_HEADERS,
    )


def _methods(path: str) -> list[str]:
    return ["GET", "POST"] if path == "/ping" else ["GET"]  # as SageMaker's and vLLM's


def _route(site: Site, path: str, methods: list[str], answer: Answer, calls: OpenCalls) -> Route:
    endpoint = Endpoint(partial(answer, site), calls, site.slow_reader_timeout)
    return Route(path, endpoint, methods=methods)


async def _refuse(request: Request, error: HTTPException) -> Response:
    place = INSTEAD.get(request.url.path, "the guide to HTTP lists the routes")
    text = f"{error.detail}; {place}" if error.status_code == 404 else error.detail
    return Response(error_body(error.status_code, text), error.status_code, error.headers, "application/json")
