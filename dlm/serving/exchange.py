"""One request for a completion, from its body to the last byte of the answer."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dlm.models.model import Model
from dlm.serving import replies, work
from dlm.serving.answer import Answer, Piece
from dlm.serving.constraints import Constraints
from dlm.serving.named import name_of
from dlm.serving.protocol import Asked, read_request
from dlm.serving.refusals import AWAY, CUT, LEFT, Closed, Gone, Wrong, wrong_of
from dlm.serving.work import Event, Failed, Grown, News, Tell

MOST_BYTES = 4 << 20  # of a body
BODY_TIME = 60.0  # seconds within which it has to arrive
PULSE = 0.5  # seconds between checks that client and engine are still there
QUIET = 15.0  # seconds of silence after which a stream sends a comment
WAITING = b": waiting\n\n"
"""A comment, which clients skip: proxies close connections that are silent."""

LOG = logging.getLogger("dlm.serving")


class Engine(Protocol):
    """What decodes requests."""

    @property
    def model(self) -> Model:
        """The model it decodes with."""
        ...

    @property
    def running(self) -> bool:
        """Whether it runs."""
        ...

    @property
    def alive(self) -> int:
        """Number of engines that run."""
        ...

    def submit(self, request: work.Request, tell: Tell) -> int:
        """Queue rows to decode; returns a ticket."""
        ...

    def cancel(self, ticket: int, row: int | None = None) -> None:
        """Cancel one row, or all rows of a request."""
        ...

    def load(self) -> tuple[int, int]:
        """Rows being decoded, and rows that wait."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """A finished request."""

    endpoint: str  # path
    status: int  # of HTTP; 499 if the client went away
    seconds: float  # since its head arrived
    choices: int  # 0 if it was refused before that was known
    prompt_tokens: int
    cached_tokens: int  # of those, reused from earlier rows
    completion_tokens: int  # that the engine reported: none for rows cut short unstreamed
    forwards: int | None  # NFE of the rows that ended in the engine; None if none did
    error: str | None  # what went wrong
    request_id: str  # also a header of the answer
    first_seconds: float | None = None  # to the first text of a stream; None if there was none


@dataclass(frozen=True, slots=True)
class Service:
    """What all requests share."""

    engine: Engine
    name: str  # of the model
    defaults: Mapping[str, Any]
    served: Callable[[Served], None]
    constraints: Constraints = field(default_factory=Constraints)  # of the engine's model


def reply(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(replies.dumped(value), status, media_type="application/json")


def refusal(wrong: Wrong) -> Response:
    """The response that reports an error."""
    response = reply(wrong.body(), wrong.status)
    if wrong.status == 429:
        response.headers["retry-after"] = "1"
    if wrong.status == 408:  # else the server would wait for the rest of the body
        response.headers["connection"] = "close"
    return response


class Exchange:
    """A request and its answer."""

    def __init__(self, service: Service, request: Request, endpoint: str, *, chat: bool) -> None:
        self.service = service
        self.engine = service.engine
        self.request = request
        self.endpoint = endpoint
        self.chat = chat
        self.start = self.looked = time.monotonic()
        self.first: float | None = None  # when a stream first had text
        self.asked: Asked | None = None
        self.answer: Answer | None = None
        self.ticket: int | None = None
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        # The outcome unless another is recorded: the client went away.
        self.status = LEFT
        self.error: str | None = AWAY

    async def respond(self) -> Response:
        """The response: the answer, or an error."""
        streams = False
        try:
            await self.begin()
            assert self.asked is not None
            if not self.asked.stream:
                return await self.whole()
            # Before a status is sent: the engine may refuse what could not be checked earlier.
            first = await self.next(within=QUIET)
            streams = True
            return EventStream(self, self.stream(first))
        except asyncio.CancelledError:  # only a server that ends cancels a request
            self.cut()
            return refusal(Wrong(503, CUT, code="closed"))
        except Exception as error:
            return refusal(self.fail(error))
        finally:
            if not streams:
                self.close()

    async def begin(self) -> None:
        """Read the body and hand the rows to the engine."""
        data = await read_body(self.request)
        asked, self.answer = await run_in_threadpool(self.read, data)
        self.asked = asked
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody listens
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        try:
            self.ticket = self.engine.submit(asked.request, tell)
        except RuntimeError as error:
            if self.engine.running:
                raise
            raise Closed from error

    def read(self, data: bytes) -> tuple[Asked, Answer]:
        """Parse a body; returns what it asks for, and an empty answer."""
        service, model = self.service, self.engine.model
        asked = read_request(
            data,
            chat=self.chat,
            model=model,
            name=service.name,
            defaults=service.defaults,
            constraints=service.constraints,
        )
        return asked, Answer(model, asked)

    async def next(self, *, look: bool = True, within: float = math.inf) -> News | None:
        """Wait for the engine's next event.

        Args:
            look: whether to check for the client; a stream that has begun notices when it leaves.
            within: seconds to wait; after that, None is returned.

        Raises:
            Closed: the engine has ended.
            Gone: the client has left.
            Exception: the engine failed at the request.
        """
        late = time.monotonic() + within
        while True:
            if time.monotonic() - self.looked >= PULSE:
                self.looked = time.monotonic()
                if look and await self.request.is_disconnected():
                    raise Gone
                if not self.engine.running and self.events.empty():
                    raise Closed
            try:
                async with asyncio.timeout(PULSE):  # `wait_for` can lose a cancellation
                    event = await self.events.get()
            except TimeoutError:
                if time.monotonic() >= late:
                    return None
                continue
            if not isinstance(event, Failed):
                return event
            if not (isinstance(event.error, ValueError) or self.engine.running):
                raise Closed from event.error
            raise event.error

    def take(self, event: News | None) -> Piece | None:
        """Add an event to the answer; a row whose choice is over is cancelled in the engine."""
        if event is None:
            return None
        assert self.answer is not None
        assert self.ticket is not None
        piece = self.answer.take(event)
        if piece is not None and piece.choice.finish_reason and isinstance(event, Grown):
            self.engine.cancel(self.ticket, event.row)
        return piece

    async def whole(self) -> Response:
        """The response with the whole answer."""
        assert self.answer is not None
        while not self.answer.complete:
            self.take(await self.next())
        response = reply(replies.Writer(self.answer, self.service.name).whole())
        self.status, self.error = 200, None
        return response

    async def stream(self, event: News | None) -> AsyncIterator[bytes]:
        """The answer as events, from the engine's first event on; that is None if it is late."""
        assert self.answer is not None
        assert self.asked is not None
        writer = replies.Writer(self.answer, self.service.name)
        spoke = self.start if event is None else time.monotonic()
        try:
            while True:
                piece = self.take(event)
                if piece is not None and (piece.text or piece.calls):
                    self.first = self.first or time.monotonic()
                for chunk in () if piece is None else writer.chunks(piece):
                    spoke = time.monotonic()
                    yield replies.event(chunk)
                if self.answer.complete:
                    break
                if time.monotonic() - spoke >= QUIET:  # also if forward passes make no text final
                    spoke = time.monotonic()
                    yield WAITING
                left = QUIET - (time.monotonic() - spoke)
                event = await self.next(look=False, within=max(0.0, left))
            if self.asked.include_usage:
                yield replies.event(writer.last_chunk())
        except Exception as error:
            yield replies.event(self.fail(error).body())
            return
        yield replies.event(b"[DONE]")
        self.status, self.error = 200, None

    def cut(self) -> None:
        """Record that the server ended first, unless another outcome is known."""
        if self.status == LEFT:
            self.status, self.error = 503, CUT

    def fail(self, error: Exception) -> Wrong:
        """Record an error; returns what the client is told."""
        wrong = wrong_of(error)
        ours = wrong.status == 500  # the client is told no details
        found = f"{type(error).__name__}: {error}" if ours else wrong.message
        self.status, self.error = wrong.status, replies.shortened(found)
        return wrong

    def close(self) -> None:
        """Cancel what is still being decoded, and report the finished request."""
        if self.ticket is not None:
            self.engine.cancel(self.ticket)
        asked, answer = self.asked, self.answer
        told = Served(
            endpoint=self.endpoint,
            status=self.status,
            seconds=time.monotonic() - self.start,
            first_seconds=None if self.first is None else self.first - self.start,
            choices=0 if asked is None else len(asked.request.rows),
            prompt_tokens=0 if asked is None or self.ticket is None else asked.prompt_tokens,
            cached_tokens=0 if answer is None else answer.cached_tokens,
            completion_tokens=0 if answer is None else answer.completion_tokens,
            forwards=None if answer is None else answer.forwards,
            error=self.error,
            request_id=name_of(self.request.scope),
        )
        try:
            self.service.served(told)
        except Exception:  # a callback must not change the answer
            LOG.exception("%s was answered with %s, but not told of", told.endpoint, told.status)


class EventStream(StreamingResponse):
    """A stream of events, which closes its exchange however it ends."""

    def __init__(self, exchange: Exchange, events: AsyncIterator[bytes]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # not from a client that leaves: that is caught inside
            self.exchange.cut()
            raise
        finally:
            self.exchange.close()


async def read_body(request: Request) -> bytes:
    """The body, within limits of size and time.

    Raises:
        Wrong: it is too long, or takes too long to arrive.
        Gone: the client left in the middle of it.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > MOST_BYTES:
        raise too_long()
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIME):
            async for part in request.stream():
                data += part
                if len(data) > MOST_BYTES:
                    raise too_long()
    except TimeoutError:
        raise Wrong(408, f"a body must be there within {BODY_TIME:g} seconds") from None
    except ClientDisconnect:
        raise Gone from None
    return bytes(data)


def too_long() -> Wrong:
    """The error for a body that is too long."""
    return Wrong(413, f"a body must be at most {MOST_BYTES >> 20} MiB")
