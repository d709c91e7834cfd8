"""Decoding problems, with a clock."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

import dlm
from dlm.eval.sample import Key
from dlm.eval.task import AnyTemplate, Messages, Problem

T = TypeVar("T")
WARM_UP = 2  # forwards before the clock starts
REPEAT = 1 << 32  # between the noise keys of two samples of a problem


@dataclass(frozen=True, slots=True)
class Item:
    """A problem to decode, once."""

    template: AnyTemplate
    problem: Problem
    index: int  # of the problem
    prompt: str | Messages
    tokens: list[int]  # of the prompt
    repeat: int = 0  # which of the problem's samples
    blanks: range | None = None  # among the tokens; None: what is decoded goes behind them

    @property
    def key(self) -> Key:
        """Of its sample."""
        return self.template.name, self.index, self.repeat

    @property
    def given(self) -> int:
        """Tokens that are not decoded."""
        return len(self.tokens) - len(self.blanks or ())

    def most(self, options: Mapping[str, Any]) -> int:
        """Tokens that are decoded, at most."""
        if self.blanks is None:
            return int(options["gen_length"])
        grown: int | None = options["max_gen_length"]
        return len(self.blanks) if grown is None else grown

    @property
    def noise(self) -> int:
        """Key of the row's noise: of problem and sample alone, so that batches change nothing."""
        return self.index + REPEAT * self.repeat


@dataclass(frozen=True, slots=True)
class Output:
    """What came of an item."""

    item: Item
    text: str  # up to the first stop token; what came of blanks without special tokens
    tokens: list[int]
    order: list[int]  # empty where blanks may grow
    response_tokens: int
    decoded_tokens: int
    forwards: int
    query_tokens: int
    seconds: float


def warm_up(model: dlm.Model, item: Item, options: Mapping[str, Any]) -> None:
    """Make a few forwards of one prompt that nobody counts."""
    if item.blanks is not None:
        warm_up_blanks(model, item.tokens, item.blanks, options)
        return
    steps = dlm.stream(model, item.tokens, **options)
    for _ in zip(range(WARM_UP), steps, strict=False):
        pass


def warm_up_blanks(
    model: dlm.Model, tokens: Sequence[int], blanks: range, options: Mapping[str, Any]
) -> None:
    """Fill the first blanks of a row, as if tokens stood in all others."""
    left, some = blanks[:WARM_UP], int(model.spec.mask_id == 0)
    filled = [some if at in blanks and at not in left else token for at, token in enumerate(tokens)]
    if options["max_gen_length"] is not None:
        options = {**options, "max_gen_length": len(left), "expand_budget": 0}
    dlm.infill(model, filled, **options)


def decode(
    model: dlm.Model, items: Sequence[Item], options: Mapping[str, Any], batch_size: int
) -> Iterator[list[Output]]:
    """Decode items, as many at a time as a batch has, and tell of as many as are done.

    What is done is told of before an error is raised.

    Raises:
        ValueError: a bad option, or a model without a tokenizer.
    """
    rows, keys = [item.tokens for item in items], [item.noise for item in items]
    infills = any(item.blanks is not None for item in items)
    ordered = options.get("max_gen_length") is None  # else positions move
    options = {"return_order": ordered, **options}
    made = decode_rows(model, rows, keys, batch_size, options, infills=infills)
    failed: list[BaseException] = []
    began = time.perf_counter()
    while some := [(items[number], one) for number, one in islice(until(made, failed), batch_size)]:
        yield outputs(model, some, time.perf_counter() - began)
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
    *,
    infills: bool = False,
) -> Iterator[tuple[int, dlm.Generation]]:
    """`dlm.generate_each`, the longest first: what does not fit memory fails at once so.

    `dlm.infill_each` for rows with blanks. From then on half as many rows are decoded at a time.
    """
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    left = {number: (rows[number], keys[number]) for number in order}
    while left:
        numbers = list(left)
        given, noise = zip(*left.values(), strict=True)
        more = {"row_keys": noise, "batch_size": batch_size, **options}
        try:
            each = dlm.infill_each if infills else dlm.generate_each
            for place, one in each(model, given, **more):
                del left[numbers[place]]
                yield numbers[place], one
        except torch.OutOfMemoryError:
            tried = min(batch_size, len(numbers))
            if tried == 1:
                raise
            batch_size = tried // 2


def outputs(
    model: dlm.Model, some: Sequence[tuple[Item, dlm.Generation]], seconds: float
) -> list[Output]:
    """Items and what came of each, which share the time by the positions computed for them.

    Raises:
        ValueError: the model has no tokenizer.
    """
    queries = sum(one.query_tokens[0] for _, one in some)
    made = []
    for item, one in some:
        tokens, order, text, response = read(model, item, one)
        made.append(
            Output(
                item=item,
                text=text,
                tokens=tokens,
                order=order,
                response_tokens=response,
                decoded_tokens=one.decoded[0],
                forwards=one.forwards[0],
                query_tokens=one.query_tokens[0],
                seconds=seconds * one.query_tokens[0] / queries,
            )
        )
    return made


def read(
    model: dlm.Model, item: Item, one: dlm.Generation
) -> tuple[list[int], list[int], str, int]:
    """What was decoded of an item: tokens, their order, text, and how many tokens are an answer.

    Raises:
        ValueError: the model has no tokenizer.
    """
    if one.texts is None:
        raise ValueError("an evaluation needs a model with a tokenizer")
    row, order = one.tokens[0], [] if one.order is None else one.order[0]
    stops = set(model.spec.stop_ids)
    if item.blanks is None:
        return row, order, one.texts[0], response_length(row, stops)
    behind = len(row) - len(item.tokens) + item.blanks.stop  # the row may have changed its length
    inside = slice(item.blanks.start, behind)
    tokens = row[inside]
    assert model.tokenizer is not None, "which has made the texts"
    text = model.tokenizer.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return tokens, order[inside], str(text), sum(token not in stops for token in tokens)


def response_length(tokens: Sequence[int], stops: set[int]) -> int:
    """Tokens in front of the first stop token."""
    return next((n for n, token in enumerate(tokens) if token in stops), len(tokens))


def undecoded(item: Item) -> Output:
    """The output of a prompt that is too long for the model: nothing."""
    return Output(item, "", [], [], 0, 0, 0, 0, 0.0)
