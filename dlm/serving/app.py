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
PING = "/ping"  # by which SageMaker asks
METRICS = "/metrics"
CORS: Mapping[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["*"],
    "expose_headers": [HEADER, "retry-after"],
}
"""What web pages may send and read."""


def untold(served: Served) -> None:
    """Tell nobody."""


def create_app(
    engine: Engine,
    *,
    name: str,
    defaults: Mapping[str, Any],
    api_key: str | None = None,
    cors_origins: Sequence[str] = (),
    served: Callable[[Served], None] = untold,
) -> Starlette:
    """The application that serves an engine's model.

    Args:
        engine: who decodes; it stays the caller's to close.
        name: of the model, as requests give it.
        defaults: options of `dlm.generate`, without those that speak of rows or of what is
            returned; a request's override them.
        api_key: what requests have to bring, all but those for `/health` and `/ping`; None for
            nothing.
        cors_origins: of web pages that may ask and read answers, "*" for all.
        served: told once of each request for a completion, when it is over.

    Raises:
        ValueError: a default that is none or does not fit the model, a model without a tokenizer,
            or an empty key or name.
    """
    if api_key is not None and not api_key:
        raise ValueError("api_key must not be empty")
    if not name:
        raise ValueError("the name of the model must not be empty")
    if engine.model.tokenizer is None:
        raise ValueError("a model must have a tokenizer to be served, and this one has none")
    check_defaults(defaults, engine.model)
    # The first call sets the tokenizer up, which must not happen while another thread uses it.
    engine.model.tokenizer("a")
    vocabulary_of(engine.model.tokenizer)
    metrics = Metrics()

    def told(one: Served) -> None:
        metrics.add(one)
        served(one)

    endpoints = Endpoints(Service(engine, name, dict(defaults), told), metrics)
    between = [Middleware(Named)]
    if cors_origins:  # in front of the guard: browsers ask whether they may without a key
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
    app.router.redirect_slashes = False  # there is nothing at such a path
    return app


class Endpoints:
    """What there is to ask for."""

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
        """The one model there is."""
        listed = [self.told()]
        return reply({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """The model of a name."""
        asked, name = request.path_params["name"], self.service.name
        if asked != name:
            message = f"model must be {name!r}, which is served here, got {asked!r}"
            return refusal(Wrong(404, message, param="model", code="model_not_found"))
        return reply(self.told())

    def told(self) -> dict[str, Any]:
        """The model, as both tell of it."""
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
        """What the tokenizer says of a body."""
        service = self.service
        try:
            data = await read_body(request)
            found = await run_in_threadpool(tell, data, service.engine.model, service.name)
        except Exception as error:
            return refusal(wrong_of(error))
        return reply(found)

    async def version(self, request: Request) -> Response:
        """That of this package."""
        return reply({"version": __version__})

    async def ping(self, request: Request) -> Response:
        """Whether requests are answered, without a word."""
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
        """What was asked so far, for Prometheus."""
        engine = self.service.engine
        decoding, waiting = engine.load()
        text = self.metrics.text(alive=engine.alive, decoding=decoding, waiting=waiting)
        return Response(text, headers={"content-type": TYPE})


class Guard:
    """Lets only those in who bring the key."""

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
        """Whether a header has the key; takes as long for any key of that length."""
        scheme, _, key = header.partition(" ")
        given = key.strip().encode("latin-1")  # as the bytes came
        return hmac.compare_digest(given, self.key) and scheme.lower() == "bearer"


async def refused(request: Request, error: Exception) -> Response:
    """The answer where no endpoint is."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    messages = {
        404: f"there is nothing at {path!r}",
        405: f"{path!r} takes no {request.method}",
    }
    response = refusal(Wrong(error.status_code, messages.get(error.status_code, error.detail)))
    response.headers.update(error.headers or {})
    return response
