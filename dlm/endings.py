"""Finished rows, and the stop texts that end rows early."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from dlm.batch import Change
from dlm.host import send
from dlm.models.model import Model
from dlm.reading import Reader
from dlm.runtime import Step
from dlm.traits import Traits


@dataclass(frozen=True, slots=True)
class End:
    """A row after its last forward pass."""

    forwards: int
    tokens: list[int]
    decoded: int  # commits minus remasks
    queries: int  # positions the network was evaluated at
    path: float | None  # ln q of committed tokens, NaN if its end was filled

    def path_of(self, blanks: int) -> float | None:
        """The path's log-probability if forward passes decoded all of the blanks; else None."""
        whole = self.path is not None and self.decoded == blanks and not math.isnan(self.path)
        return self.path if whole else None


def ended(step: Step, given_up: Collection[int] = ()) -> Iterator[tuple[int, End]]:
    """The rows, by name, that this forward pass finished or that are given up."""
    lines = enumerate(zip(step.names, step.live, step.done, strict=True))
    over = [line for line, (name, live, done) in lines if done or (live and name in given_up)]
    if over:
        tally, rows = step.tally, step.tokens[over].tolist()
        counts = torch.stack((tally.decoded, tally.queries), -1)[over].tolist()
        paths = [None] * len(over) if tally.path is None else tally.path[over].tolist()
        for line, tokens, (decoded, queries), path in zip(over, rows, counts, paths, strict=True):
            yield step.names[line], End(step.made[line], tokens, decoded, queries, path)


def ongoing(step: Step, names: Collection[int]) -> list[tuple[int, int, list[int]]]:
    """Rows with the given names that continue: name, start of the last block, tokens.

    Takes one copy to the host for all rows, and none if there is no such row.
    """
    rows = enumerate(zip(step.names, step.live, step.done, strict=True))
    lines = [line for line, (name, live, done) in rows if live and not done and name in names]
    if not lines:
        return []
    index = send(lines, step.tokens.device)
    seen = torch.cat((step.view.block_start[:, None], step.tokens), 1)[index].tolist()
    return [(step.names[line], begin, row) for line, (begin, *row) in zip(lines, seen, strict=True)]


class StopTexts:
    """Gives up a row once the part of it that is final contains a stop text."""

    def __init__(
        self, model: Model, spans: Sequence[tuple[int, int]], traits: Traits, stop: Sequence[str]
    ) -> None:
        """Take the rows' model, spans, decoder traits and stop texts.

        Raises:
            ValueError: there are stop texts and no tokenizer.
        """
        self.model = model
        self.spans = spans
        self.traits = traits
        self.stop = stop
        self.readers = [Reader(model, stop) for _ in spans] if stop else []
        self.told = [begin for begin, _ in spans]  # tokens before this were read
        self.leaving: frozenset[int] = frozenset()

    def look(self, step: Step) -> frozenset[int]:
        """Rows that a stop text ends after this forward pass."""
        if not self.readers:
            return frozenset()
        pairs = zip(step.names, step.live, strict=True)
        unread = {name for name, live in pairs if live and not self.readers[name].stopped}
        for name, block_start, row in ongoing(step, unread):
            begin, end = self.spans[name]
            settled = self.traits.settled(row[:end], begin, block_start, self.model.spec.mask_id)
            if settled > self.told[name]:
                self.readers[name].push(row[self.told[name] : settled])
                self.told[name] = settled
        stopped = frozenset(name for name in unread if self.readers[name].stopped)
        self.leaving |= stopped
        return stopped

    def change(self) -> Change:
        """The rows to drop, found since the last call."""
        leaving, self.leaving = self.leaving, frozenset()
        return Change(leave=leaving)

    def read(self, name: int, tokens: list[int]) -> tuple[str, list[int] | None]:
        """Read a row after its last forward pass.

        Returns:
            Its text before the first stop text; and its tokens through the end of that stop text,
            padded with end of text, or None if there is no stop text.
        """
        reader = self.readers[name]
        reader.end(tokens)
        if not reader.stopped:
            return reader.given, None

        rest = [self.model.spec.eos_id] * (len(tokens) - reader.count)
        return reader.given, tokens[: reader.count] + rest
