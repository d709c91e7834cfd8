"""The network calls of a decoding: recorded, timed where they happen, and made again alone.

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
    """One call of the network: of `hidden` with its arguments, or of `logits` at N positions."""

    arguments: tuple[Any, ...]  # of `hidden`; empty for `logits`
    rows: int  # tokens computed, or N

    @property
    def size(self) -> tuple[int, int]:
        """B and L of the rows that attend to each other."""
        tokens, *_, cache = self.arguments
        shape = tokens.shape if cache is None else cache.packing.place.shape
        return shape[0], shape[1]


@dataclass(frozen=True, slots=True)
class Recorder(Model):
    """A model that notes its calls and how long they took on this thread."""

    calls: list[Call] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model) -> "Recorder":
        """A recorder around a model."""
        return cls(model.network, model.tokenizer, model.spec)

    def clear(self) -> None:
        """Forget all."""
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
        """As `Model.hidden`."""
        if cache is not None and not (isinstance(cache, Packed) and cache.keep is None):
            raise ValueError("a decoding with a cache cannot be made again without it")
        self.calls.append(Call((tokens, positions, valid, attend, cache), tokens.numel()))
        began = time.perf_counter()
        out = Model.hidden(self, tokens, positions, valid, cache, attend=attend)
        self.seconds.append(time.perf_counter() - began)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """As `Model.logits`."""
        self.calls.append(Call((), hidden.shape[0]))
        began = time.perf_counter()
        out = Model.logits(self, hidden)
        self.seconds.append(time.perf_counter() - began)
        return out


@torch.inference_mode()
def replay(model: Model, calls: list[Call]) -> None:
    """The same calls, back to back: the same tokens, and as many positions projected."""
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
    """The network calls of a decoding, ready to be made again."""

    run: Callable[[], object] | None  # None where that would say nothing of the network
    by: str  # how they are made

    @classmethod
    def of(cls, model: Model, calls: list[Call], gpu: Gpu | None) -> "Alone":
        """Plain calls; on a GPU recorded ones, as plain ones would time the host.

        Forwards of the same shapes are recorded once: they see the tokens of the first of them.
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
    """Each call of `hidden` with those of `logits` behind it."""
    groups: list[list[Call]] = []
    for call in calls:
        if call.arguments:
            groups.append([])
        groups[-1].append(call)
    return groups


def shapes(forward: list[Call]) -> tuple[Any, ...]:
    """What forwards share that can be recorded as one. A packed one stands alone."""
    first, *others = forward
    *given, cache = first.arguments
    sizes = (None if each is None else each.shape for each in given)
    return (*sizes, cache, *(call.rows for call in others))
