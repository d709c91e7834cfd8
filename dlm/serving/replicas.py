"""Several engines that act as one: copies of a model, each on a device of its own."""

from collections.abc import Sequence

from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.work import Busy, Request, Tell


class Replicas:
    """Hands each request to the engine that has the fewest rows.

    Among engines with equally few rows, it goes to the one whose prompt cache holds most of its
    first prompt, then to the first. A row's result does not depend on the engine that decodes it.
    Engines that have ended are skipped; the others continue.

    Args:
        engines: engines of one model, which is loaded once for each.

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
        """The model of the first engine; the others are like it."""
        return self.engines[0].model

    @property
    def running(self) -> bool:
        """Whether any engine runs."""
        return self.alive > 0

    @property
    def alive(self) -> int:
        """Number of engines that run."""
        return sum(engine.alive for engine in self.engines)

    @property
    def batch_size(self) -> int:
        """Most rows that all engines together decode at a time."""
        return sum(engine.batch_size for engine in self.engines)

    def submit(self, request: Request, tell: Tell) -> int:
        """Submit to the first engine that takes the request; those with the fewest rows come first.

        Raises:
            Busy: no engine has room.
            RuntimeError: all engines are closed.
            ValueError: the request has more rows than may ever wait.
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
        """Indices of all engines, the best one for a request first."""
        begin, _ = request.spans[0]
        prompt = request.rows[0][:begin]

        def cost(number: int) -> tuple[int, int]:
            engine = self.engines[number]
            return sum(engine.load()), -engine.kept(prompt)

        return sorted(range(len(self.engines)), key=cost)

    def cancel(self, ticket: int, row: int | None = None) -> None:
        """As `Engine.cancel`, at the engine that gave the ticket."""
        ticket, number = divmod(ticket, len(self.engines))
        self.engines[number].cancel(ticket, row)

    def load(self) -> tuple[int, int]:
        """Rows being decoded and rows that wait, over all engines."""
        decoding, waiting = zip(*(engine.load() for engine in self.engines), strict=True)
        return sum(decoding), sum(waiting)

    def stop(self) -> None:
        """Fail unfinished requests after the current forward pass of each engine, and end."""
        for engine in self.engines:
            engine.stop()

    def close(self) -> None:
        """Stop, and wait for all engines to end."""
        self.stop()
        for engine in self.engines:
            engine.close()
