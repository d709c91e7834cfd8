"""The network calls of a decoding: recorded, timed in place, and repeated alone.

Shapes: B rows, L tokens, N positions, D model width.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dlm.bench.events import Gpu, UnrecordableError
from dlm.models.model import Model
from dlm.packing import Packed

PLAIN = "plain calls"


@dataclass(frozen=True, slots=True)
class Call:
    """One network call: `hidden` with its arguments, or `logits` at N positions."""

    arguments: tuple[Any, ...]  # of `hidden`; empty for `logits`
    rows: int  # tokens computed, or N

    @property
    def size(self) -> tuple[int, int]:
        """B and L of the rows in attention."""
        tokens, *_, cache = self.arguments
        shape = tokens.shape if cache is None else cache.packing.place.shape
        return shape[0], shape[1]


@dataclass(frozen=True, slots=True)
class Recorder(Model):
    """A model that records its calls, and how long they took on this thread."""

    calls: list[Call] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model) -> "Recorder":
        """Wrap a model in a recorder."""
        return cls(model.network, model.tokenizer, model.spec)

    def clear(self) -> None:
        """Forget all calls."""
        self.calls.clear()
        self.seconds.clear()

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        cache: Any = None,
        *,
        attend: Tensor | None = None,
    ) -> Tensor:
        """Run `Model.hidden` and record the call."""
        if cache is not None and not (isinstance(cache, Packed) and cache.keep is None):
            raise ValueError("a decoding with a cache cannot be made again without it")
        self.calls.append(Call((tokens, positions, valid, attend, cache), tokens.numel()))
        began = time.perf_counter()
        out = Model.hidden(self, tokens, positions, valid, cache, attend=attend)
        self.seconds.append(time.perf_counter() - began)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Run `Model.logits` and record the call."""
        self.calls.append(Call((), hidden.shape[0]))
        began = time.perf_counter()
        out = Model.logits(self, hidden)
        self.seconds.append(time.perf_counter() - began)
        return out


@torch.inference_mode()
def replay(model: Model, calls: list[Call]) -> None:
    """Repeat the calls back to back, with the same tokens and as many projected positions."""
    states: Tensor | None = None
    for call in calls:
        if call.arguments:
            tokens, positions, valid, attend, cache = call.arguments
            states = model.hidden(tokens, positions, valid, cache, attend=attend).flatten(0, 1)
        else:
            assert states is not None
            model.logits(states[: call.rows])


@dataclass(frozen=True, slots=True)
class Alone:
    """The network calls of a decoding, ready to be repeated."""

    run: Callable[[], object] | None  # None if it would not measure the network
    by: str  # how the calls are made

    @classmethod
    def of(cls, model: Model, calls: list[Call], gpu: Gpu | None) -> "Alone":
        """Prepare plain calls; on a GPU recorded ones, as plain ones would time the host.

        Forward passes of the same shapes share one recording, which uses the tokens of the first of
        them.
        """
        if gpu is None:
            return cls(partial(replay, model, calls), PLAIN)
        made: dict[tuple[Any, ...], Callable[[], object]] = {}
        order = []
        try:
            for forward in forwards(calls):
                shape = shapes(forward)
                if shape not in made:
                    made[shape] = gpu.record(partial(replay, model, forward))
                order.append(made[shape])
        except UnrecordableError as error:
            return cls(None, f"not timed, as recording failed: {error}")

        def run() -> None:
            for play in order:
                play()

        return cls(run, f"{len(made)} CUDA graphs for {len(order)} forwards")


def forwards(calls: list[Call]) -> list[list[Call]]:
    """Group each call of `hidden` with the calls of `logits` that follow it."""
    groups: list[list[Call]] = []
    for call in calls:
        if call.arguments:
            groups.append([])
        groups[-1].append(call)
    return groups


def shapes(forward: list[Call]) -> tuple[Any, ...]:
    """The key of forward passes that can share a recording; a packed one shares with no other."""
    first, *others = forward
    *given, cache = first.arguments
    sizes = (None if each is None else each.shape for each in given)
    return (*sizes, cache, *(call.rows for call in others))
