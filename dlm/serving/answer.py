"""The choices of an answer, built from the engine's events."""

from dataclasses import dataclass, field

from dlm.models.model import Model
from dlm.reading import AtStopToken, Reader
from dlm.serving.logprobs import Listed, Listing
from dlm.serving.protocol import Asked
from dlm.serving.tools import Called, CallReader
from dlm.serving.work import Ended, Grown, News, Reused


@dataclass(slots=True)
class Choice:
    """One row of a request, as far as it has been reported."""

    reader: Reader
    listing: Listing | None  # None if no log-probabilities are asked for
    caller: CallReader | None  # None if no function may be called
    tokens: list[Listed] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    calls: list[Called] = field(default_factory=list)
    finish_reason: str | None = None  # "stop", "tool_calls" or "length", once it is over
    reused: int = 0  # tokens of its prompt taken from the prompt cache
    forwards: int | None = None  # None if a stop text ended it and its row was cancelled

    def take(self, text: str) -> tuple[str, list[Called]]:
        """Add text, the last if the choice is over; returns its plain text, and the calls in it."""
        calls: list[Called] = []
        if self.caller is not None:
            text, calls = self.caller.push(text, over=self.finish_reason is not None)
        self.pieces.append(text)
        self.calls += calls
        if self.calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return text, calls

    @property
    def text(self) -> str:
        """Its whole text, without calls."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event adds to the answer."""

    index: int  # of the choice
    text: str
    tokens: list[Listed]  # those that begin in the text so far, and in no earlier piece
    calls: list[Called]  # those that ended
    choice: Choice


class Answer:
    """All choices of a request."""

    def __init__(self, model: Model, asked: Asked) -> None:
        self.asked = asked
        does = at_stop_token(asked)
        lists, tools = asked.request.log_probabilities, asked.tools
        self.choices = [
            Choice(
                Reader(model, asked.stop, at_stop_token=does),
                Listing(model) if lists else None,
                None if tools is None else CallReader(several=tools.several),
            )
            for _ in asked.request.rows
        ]

    def take(self, event: News) -> Piece | None:
        """Apply an event; returns what it adds to the answer.

        None for reused tokens, and for an event sent before the engine heard that the row is over.
        """
        choice = self.choices[event.row]
        if isinstance(event, Reused):
            choice.reused = event.tokens
            return None
        if choice.finish_reason is not None:
            return None
        reader = choice.reader
        if isinstance(event, Grown):
            text = reader.push(event.tokens)
        else:
            text = reader.end(event.tokens)
            choice.forwards = event.forwards
        if reader.stopped:
            choice.finish_reason = "stop"
        elif isinstance(event, Ended):
            # Under a constraint a text is complete even if it fills its row.
            whole = reader.ended or event.closed or self.asked.request.settings.constraint
            choice.finish_reason = "stop" if whole else "length"
        text, calls = choice.take(text)
        tokens = [] if choice.listing is None else choice.listing.take(event, reader)
        choice.tokens += tokens
        return Piece(event.row, text, tokens, calls, choice)

    @property
    def complete(self) -> bool:
        """Whether all choices are over."""
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices, each counted through the stop token or stop text that ends it."""
        return sum(choice.reader.count for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that no choice had to compute, counting each prompt once."""
        n = self.asked.n
        each = [choice.reused for choice in self.choices]
        return sum(min(each[first : first + n]) for first in range(0, len(each), n))

    @property
    def forwards(self) -> int | None:
        """Forward passes of those choices that report them; None if none does."""
        known = [choice.forwards for choice in self.choices if choice.forwards is not None]
        return sum(known) if known else None


def at_stop_token(asked: Asked) -> AtStopToken:
    """What the first stop token of a choice does.

    If rows continue after it, all their tokens were decoded and are counted. Their text is that of
    `dlm.generate`; before a suffix it is the whole text, as in `dlm.infill`.
    """
    if asked.request.settings.stop_at_eos:
        return "end"
    return "ignore" if asked.fills else "cut"
