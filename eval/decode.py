"""Decoding of problems, with time measurement."""

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
WARM_UP = 2  # forward passes before timing starts
REPEAT = 1 << 32  # step between the noise keys of two samples of a problem


@dataclass(frozen=True, slots=True)
class Item:
    """One sample of a problem to decode."""

    template: AnyTemplate
    problem: Problem
    index: int  # of the problem
    prompt: str | Messages
    tokens: list[int]  # of the prompt
    repeat: int = 0  # index of the sample among those of the problem
    blanks: range | None = None  # positions to fill; None: decode after the tokens

    @property
    def key(self) -> Key:
        """The key of the sample."""
        return self.template.name, self.index, self.repeat

    @property
    def given(self) -> int:
        """Number of tokens that are not decoded."""
        return len(self.tokens) - len(self.blanks or ())

    def most(self, options: Mapping[str, Any]) -> int:
        """The most tokens to decode."""
        if self.blanks is None:
            return int(options["gen_length"])
        grown: int | None = options["max_gen_length"]
        return len(self.blanks) if grown is None else grown

    @property
    def noise(self) -> int:
        """The row's noise key, from problem and sample only, so that batching does not matter."""
        return self.index + REPEAT * self.repeat


@dataclass(frozen=True, slots=True)
class Output:
    """The decoded output of an item."""

    item: Item
    text: str  # up to the first stop token; for blanks, their text without special tokens
    tokens: list[int]
    order: list[int]  # empty if blanks may grow
    response_tokens: int
    decoded_tokens: int
    forwards: int
    query_tokens: int
    seconds: float


def warm_up(model: dlm.Model, item: Item, options: Mapping[str, Any]) -> None:
    """Run a few untimed forward passes on one prompt."""
    if item.blanks is not None:
        warm_up_blanks(model, item.tokens, item.blanks, options)
        return
    steps = dlm.stream(model, item.tokens, **options)
    for _ in zip(range(WARM_UP), steps, strict=False):
        pass


def warm_up_blanks(
    model: dlm.Model, tokens: Sequence[int], blanks: range, options: Mapping[str, Any]
) -> None:
    """Fill the first blanks of a row, with all others replaced by tokens."""
    left, some = blanks[:WARM_UP], int(model.spec.mask_id == 0)
    filled = [some if at in blanks and at not in left else token for at, token in enumerate(tokens)]
    if options["max_gen_length"] is not None:
        options = {**options, "max_gen_length": len(left), "expand_budget": 0}
    dlm.infill(model, filled, **options)


def decode(
    model: dlm.Model, items: Sequence[Item], options: Mapping[str, Any], batch_size: int
) -> Iterator[list[Output]]:
    """Decode items in batches, and yield outputs in groups as they are done.

    Outputs that are done are yielded before an error is raised.

    Raises:
        ValueError: an option is invalid, or the model has no tokenizer.
    """
    rows, keys = [item.tokens for item in items], [item.noise for item in items]
    infills = any(item.blanks is not None for item in items)
    ordered = options.get("max_gen_length") is None  # otherwise positions move
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
    """Yield what an iterator gives until an error, also Ctrl-C, which is added to `failed`."""
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
    """Decode rows with `dlm.generate_each`, longest first.

    Running out of memory thus shows early. Rows with blanks use `dlm.infill_each`. After running
    out of memory, half as many rows are decoded at once.
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
    """Outputs of items that were decoded together; they share the time by their query tokens.

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
    """Read what was decoded of an item.

    Returns:
        The tokens, their order, the text, and the number of response tokens.

    Raises:
        ValueError: the model has no tokenizer.
    """
    if one.texts is None:
        raise ValueError("an evaluation needs a model with a tokenizer")
    row, order = one.tokens[0], [] if one.order is None else one.order[0]
    stops = set(model.spec.stop_ids)
    if item.blanks is None:
        return row, order, one.texts[0], response_length(row, stops)
    behind = len(row) - len(item.tokens) + item.blanks.stop  # the row's length may have changed
    inside = slice(item.blanks.start, behind)
    tokens = row[inside]
    assert model.tokenizer is not None, "which has made the texts"
    text = model.tokenizer.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return tokens, order[inside], str(text), sum(token not in stops for token in tokens)


def response_length(tokens: Sequence[int], stops: set[int]) -> int:
    """Number of tokens before the first stop token."""
    return next((n for n, token in enumerate(tokens) if token in stops), len(tokens))


def undecoded(item: Item) -> Output:
    """The empty output of a prompt that is too long for the model."""
    return Output(item, "", [], [], 0, 0, 0, 0, 0.0)
