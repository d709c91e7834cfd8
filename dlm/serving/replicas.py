"""Several engines behind the face of one: copies of a model, each on a device of its own."""

from collections.abc import Sequence

from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.work import Busy, Request, Tell


class Replicas:
    """Hands each request to one of several engines: to the one that has the fewest rows.

    Among those that have as few it goes to the one whose prompt cache holds most of its first
    prompt, then to the first. What a row yields does not depend on where it was decoded. An engine
    that has ended is passed over: the others answer on.

    Args:
        engines: of one model, loaded once for each.

    Raises:
        ValueError: there are none, or two share a network, which would decode them in turns.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        if not engines:
            raise ValueError("engines must be at least one, got none")
        if len({id(engine.model.network) for engine in engines}) < len(engines):
            raise ValueError("engines must have a network each, got one in several")
        self.engines = tuple(engines)

    @property
    def model(self) -> Model:
        """That of the first: the others are like it."""
        return self.engines[0].model

    @property
    def running(self) -> bool:
        """Whether any of them decodes."""
        return self.alive > 0

    @property
    def alive(self) -> int:
        """How many of them decode."""
        return sum(engine.alive for engine in self.engines)

    @property
    def batch_size(self) -> int:
        """Rows that all of them decode at a time, at most."""
        return sum(engine.batch_size for engine in self.engines)

    def submit(self, request: Request, tell: Tell) -> int:
        """As of an engine: the first that takes it, of those that have the fewest rows.

        Raises:
            Busy: no engine has room.
            RuntimeError: all of them are closed.
            ValueError: it has more rows than may ever wait.
        """
        refusal: Exception = RuntimeError("the engine is closed")
        for number in self.ranked(request):
            engine = self.engines[number]
            try:
                return engine.submit(request, tell) * len(self.engines) + number
            except Busy as error:
                refusal = error
            except RuntimeError:
                if engine.running:
                    raise
        raise refusal

    def ranked(self, request: Request) -> list[int]:
        """All engines, those first that a request had better go to."""
        begin, _ = request.spans[0]
        prompt = request.rows[0][:begin]

        def cost(number: int) -> tuple[int, int]:
            engine = self.engines[number]
            return sum(engine.load()), -engine.kept(prompt)

        return sorted(range(len(self.engines)), key=cost)

    def cancel(self, ticket: int, row: int | None = None) -> None:
        """As of an engine: of the one that gave the ticket."""
        ticket, number = divmod(ticket, len(self.engines))
        self.engines[number].cancel(ticket, row)

    def load(self) -> tuple[int, int]:
        """Rows being decoded, and rows that wait, in all."""
        decoding, waiting = zip(*(engine.load() for engine in self.engines), strict=True)
        return sum(decoding), sum(waiting)

    def stop(self) -> None:
        """Fail what is not done, after this forward of each, and end."""
        for engine in self.engines:
            engine.stop()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        for engine in self.engines:
            engine.close()
