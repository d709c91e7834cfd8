"""Decoding problems, with a clock."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

import dlm
from dlm.eval.sample import Key
from dlm.eval.task import Messages, Problem, Template

T = TypeVar("T")
WARM_UP = 2  # forwards before the clock starts
REPEAT = 1 << 32  # between the noise keys of two samples of a problem


@dataclass(frozen=True, slots=True)
class Item:
    """A problem to decode, once."""

    template: Template
    problem: Problem
    index: int  # of the problem
    prompt: str | Messages
    tokens: list[int]  # of the prompt
    repeat: int = 0  # which of the problem's samples

    @property
    def key(self) -> Key:
        """Of its sample."""
        return self.template.name, self.index, self.repeat

    @property
    def noise(self) -> int:
        """Key of the row's noise: of problem and sample alone, so that batches change nothing."""
        return self.index + REPEAT * self.repeat


@dataclass(frozen=True, slots=True)
class Output:
    """What came of an item."""

    item: Item
    text: str  # up to the first stop token
    tokens: list[int]
    order: list[int]
    response_tokens: int
    decoded_tokens: int
    forwards: int
    query_tokens: int
    seconds: float


def warm_up(model: dlm.Model, item: Item, options: Mapping[str, Any]) -> None:
    """Make a few forwards of one prompt that nobody counts."""
    steps = dlm.stream(model, item.tokens, **options)
    for _ in zip(range(WARM_UP), steps, strict=False):
        pass


def decode(
    model: dlm.Model, items: Sequence[Item], options: Mapping[str, Any], batch_size: int
) -> Iterator[list[Output]]:
    """Decode items, as many at a time as a batch has, and tell of as many as are done.

    What is done is told of before an error is raised.

    Raises:
        ValueError: a bad option, or a model without a tokenizer.
    """
    rows, keys = [item.tokens for item in items], [item.noise for item in items]
    made = decode_rows(model, rows, keys, batch_size, {"return_order": True, **options})
    stops = set(model.spec.stop_ids)
    failed: list[BaseException] = []
    began = time.perf_counter()
    while some := [(items[number], one) for number, one in islice(until(made, failed), batch_size)]:
        yield outputs(some, time.perf_counter() - began, stops)
        began = time.perf_counter()
    if failed:
        raise failed[0]


def until(made: Iterator[T], failed: list[BaseException]) -> Iterator[T]:
    """All that an iterator gives before an error, Ctrl-C too, which is noted."""
    while not failed:
        try:
            one = next(made)
        except StopIteration:
            return
        except BaseException as error:
            failed.append(error)
            return
        yield one


def decode_rows(
    model: dlm.Model,
    rows: Sequence[Sequence[int]],
    keys: Sequence[int],
    batch_size: int,
    options: Mapping[str, Any],
) -> Iterator[tuple[int, dlm.Generation]]:
    """`dlm.generate_each`, the longest first: what does not fit memory fails at once so.

    From then on half as many rows are decoded at a time.
    """
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    left = {number: (rows[number], keys[number]) for number in order}
    while left:
        numbers = list(left)
        given, noise = zip(*left.values(), strict=True)
        more = {"row_keys": noise, "batch_size": batch_size, **options}
        try:
            for place, one in dlm.generate_each(model, given, **more):
                del left[numbers[place]]
                yield numbers[place], one
        except torch.OutOfMemoryError:
            tried = min(batch_size, len(numbers))
            if tried == 1:
                raise
            batch_size = tried // 2


def outputs(
    some: Sequence[tuple[Item, dlm.Generation]], seconds: float, stops: set[int]
) -> list[Output]:
    """Items and what came of each, which share the time by the positions computed for them.

    Raises:
        ValueError: the model has no tokenizer.
    """
    queries = sum(one.query_tokens[0] for _, one in some)
    made = []
    for item, one in some:
        if one.texts is None or one.order is None:
            raise ValueError("an evaluation needs a model with a tokenizer")
        made.append(
            Output(
                item=item,
                text=one.texts[0],
                tokens=one.tokens[0],
                order=one.order[0],
                response_tokens=response_length(one.tokens[0], stops),
                decoded_tokens=one.decoded[0],
                forwards=one.forwards[0],
                query_tokens=one.query_tokens[0],
                seconds=seconds * one.query_tokens[0] / queries,
            )
        )
    return made


def response_length(tokens: Sequence[int], stops: set[int]) -> int:
    """Tokens in front of the first stop token."""
    return next((n for n, token in enumerate(tokens) if token in stops), len(tokens))


def undecoded(item: Item) -> Output:
    """The output of a prompt that is too long for the model: nothing."""
    return Output(item, "", [], [], 0, 0, 0, 0, 0.0)
