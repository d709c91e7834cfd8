"""The HTTP application: OpenAI's endpoints over one engine."""

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dlm._version import __version__
from dlm.models.model import Model
from dlm.reading import vocabulary_of
from dlm.serving import replies
from dlm.serving.exchange import Engine, Exchange, Served, Service, read_body, refusal, reply
from dlm.serving.metrics import TYPE, Metrics
from dlm.serving.named import HEADER, Named
from dlm.serving.protocol import check_defaults
from dlm.serving.refusals import Wrong, wrong_of
from dlm.serving.tokens import detokenize, tokenize

__all__ = ["Served", "create_app"]

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HEALTH = "/health"
PING = "/ping"  # SageMaker's health check
METRICS = "/metrics"
CORS: Mapping[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["*"],
    "expose_headers": [HEADER, "retry-after"],
}
"""What web pages may send, and which headers they may read."""


def untold(served: Served) -> None:
    """Report to nobody."""


def create_app(
    engine: Engine,
    *,
    name: str,
    defaults: Mapping[str, Any],
    api_key: str | None = None,
    cors_origins: Sequence[str] = (),
    served: Callable[[Served], None] = untold,
) -> Starlette:
    """Create the application that serves an engine's model.

    Args:
        engine: decodes the requests; the caller has to close it.
        name: the model's name, as requests give it.
        defaults: options of `dlm.generate`, except those about rows or about what is returned; a
            request overrides them.
        api_key: key that requests have to send, except to `/health` and `/ping`; None for no key.
        cors_origins: origins of web pages that may send requests and read answers; "*" for all.
        served: called once for each request for a completion, when it is finished.

    Raises:
        ValueError: a default is unknown or does not fit the model, the model has no tokenizer, or
            the key or name is empty.
    """
    if api_key is not None and not api_key:
        raise ValueError("api_key must not be empty")
    if not name:
        raise ValueError("the name of the model must not be empty")
    if engine.model.tokenizer is None:
        raise ValueError("a model must have a tokenizer to be served, and this one has none")
    check_defaults(defaults, engine.model)
    # The first call sets up the tokenizer, which must not happen while another thread uses it.
    engine.model.tokenizer("a")
    vocabulary_of(engine.model.tokenizer)
    metrics = Metrics()

    def told(one: Served) -> None:
        metrics.add(one)
        served(one)

    endpoints = Endpoints(Service(engine, name, dict(defaults), told), metrics)
    between = [Middleware(Named)]
    if cors_origins:  # before the guard: browsers send preflight requests without a key
        between.append(Middleware(CORSMiddleware, allow_origins=cors_origins, **CORS))
    if api_key is not None:
        between.append(Middleware(Guard, key=api_key))
    app = Starlette(
        routes=[
            Route(COMPLETIONS, endpoints.complete, methods=["POST"]),
            Route(CHAT, endpoints.chat, methods=["POST"]),
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/tokenize", endpoints.tokenize, methods=["POST"]),
            Route("/detokenize", endpoints.detokenize, methods=["POST"]),
            Route("/version", endpoints.version, methods=["GET"]),
            Route(HEALTH, endpoints.health, methods=["GET"]),
            Route(PING, endpoints.ping, methods=["GET", "POST"]),
            Route(METRICS, endpoints.measure, methods=["GET"]),
        ],
        middleware=between,
        exception_handlers={HTTPException: refused},
    )
    app.router.redirect_slashes = False  # no endpoint has such a path
    return app


class Endpoints:
    """The handlers of all endpoints."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self.service = service
        self.metrics = metrics
        self.created = int(time.time())

    async def complete(self, request: Request) -> Response:
        """Continue prompts."""
        return await Exchange(self.service, request, COMPLETIONS, chat=False).respond()

    async def chat(self, request: Request) -> Response:
        """Answer messages."""
        return await Exchange(self.service, request, CHAT, chat=True).respond()

    async def models(self, request: Request) -> Response:
        """List the one model."""
        listed = [self.told()]
        return reply({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """Describe the model of a name."""
        asked, name = request.path_params["name"], self.service.name
        if asked != name:
            message = f"model must be {name!r}, which is served here, got {asked!r}"
            return refusal(Wrong(404, message, param="model", code="model_not_found"))
        return reply(self.told())

    def told(self) -> dict[str, Any]:
        """The description of the model."""
        most = self.service.engine.model.spec.max_length
        return replies.model_object(self.service.name, self.created, most)

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a chat."""
        return await self.told_of(request, tokenize)

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        return await self.told_of(request, detokenize)

    async def told_of(
        self, request: Request, tell: Callable[[bytes, Model, str], dict[str, Any]]
    ) -> Response:
        """Respond with what `tell` makes of the body."""
        service = self.service
        try:
            data = await read_body(request)
            found = await run_in_threadpool(tell, data, service.engine.model, service.name)
        except Exception as error:
            return refusal(wrong_of(error))
        return reply(found)

    async def version(self, request: Request) -> Response:
        """The version of this package."""
        return reply({"version": __version__})

    async def ping(self, request: Request) -> Response:
        """Whether requests are answered, as a status alone."""
        return Response(status_code=200 if self.service.engine.running else 503)

    async def health(self, request: Request) -> Response:
        """Whether requests are answered, and how many rows there are."""
        engine = self.service.engine
        if not engine.running:
            return reply({"status": "stopped"}, 503)
        decoding, waiting = engine.load()
        found = {"engines": engine.alive, "decoding": decoding, "waiting": waiting}
        return reply({"status": "ok", **found})

    async def measure(self, request: Request) -> Response:
        """The metrics, for Prometheus."""
        engine = self.service.engine
        decoding, waiting = engine.load()
        text = self.metrics.text(alive=engine.alive, decoding=decoding, waiting=waiting)
        return Response(text, headers={"content-type": TYPE})


class Guard:
    """Lets only requests with the API key pass."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        guarded = scope["type"] == "http" and scope["path"] not in (HEALTH, PING)
        if not guarded or self.fits(Headers(scope=scope).get("authorization", "")):
            await self.app(scope, receive, send)
            return
        message = "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'"
        response = refusal(Wrong(401, message, code="invalid_api_key"))
        response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)

    def fits(self, header: str) -> bool:
        """Whether a header has the key; takes equally long for all keys of one length."""
        scheme, _, key = header.partition(" ")
        given = key.strip().encode("latin-1")  # the bytes as sent
        return hmac.compare_digest(given, self.key) and scheme.lower() == "bearer"


async def refused(request: Request, error: Exception) -> Response:
    """The response if no endpoint has the path, or it does not take the method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    messages = {
        404: f"there is nothing at {path!r}",
        405: f"{path!r} takes no {request.method}",
    }
    response = refusal(Wrong(error.status_code, messages.get(error.status_code, error.detail)))
    response.headers.update(error.headers or {})
    return response
