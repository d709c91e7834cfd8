"""Decoding problems batch by batch, with a clock."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import dlm
from dlm.eval.sample import Key
from dlm.eval.task import Messages, Problem, Template

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


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Items of like length together, the longest first: what does not fit memory fails at once."""
    order = sorted(items, key=lambda each: (-len(each.tokens), *each.key))
    for first in range(0, len(order), size):
        yield order[first : first + size]


def warm_up(model: dlm.Model, item: Item, options: Mapping[str, Any]) -> None:
    """Make a few forwards of one prompt that nobody counts."""
    steps = dlm.stream(model, item.tokens, **options)
    for _ in zip(range(WARM_UP), steps, strict=False):
        pass


def decode(model: dlm.Model, items: Sequence[Item], options: Mapping[str, Any]) -> list[Output]:
    """Decode some items in one batch, or in halves where that takes more memory than there is."""
    try:
        return decode_batch(model, items, options)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    half = len(items) // 2
    return [*decode(model, items[:half], options), *decode(model, items[half:], options)]


def decode_batch(
    model: dlm.Model, items: Sequence[Item], options: Mapping[str, Any]
) -> list[Output]:
    """Decode some items in one batch.

    Raises:
        ValueError: a bad option, or a model without a tokenizer.
    """
    began = time.perf_counter()
    out = dlm.generate(
        model,
        [item.tokens for item in items],
        row_keys=[item.noise for item in items],
        return_order=True,
        **options,
    )
    seconds = time.perf_counter() - began
    if out.texts is None or out.order is None:
        raise ValueError("an evaluation needs a model with a tokenizer")
    stops = set(model.spec.stop_ids)
    queries = sum(out.query_tokens)
    return [
        Output(
            item=item,
            text=out.texts[row],
            tokens=out.tokens[row],
            order=out.order[row],
            response_tokens=response_length(out.tokens[row], stops),
            decoded_tokens=out.decoded[row],
            forwards=out.forwards[row],
            query_tokens=out.query_tokens[row],
            seconds=seconds * out.query_tokens[row] / queries,
        )
        for row, item in enumerate(items)
    ]


def response_length(tokens: Sequence[int], stops: set[int]) -> int:
    """Tokens in front of the first stop token."""
    return next((n for n, token in enumerate(tokens) if token in stops), len(tokens))


def undecoded(item: Item) -> Output:
    """The output of a prompt that is too long for the model: nothing."""
    return Output(item, "", [], [], 0, 0, 0, 0, 0.0)
