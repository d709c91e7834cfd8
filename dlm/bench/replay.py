"""The network calls of a decoding: recorded, timed where they happen, and made again alone.

Shapes: B rows, L tokens, N positions, D model width.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlm.models.model import Model
from dlm.packing import Packed


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
        attend: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """As `Model.hidden`."""
        if cache is not None and not (isinstance(cache, Packed) and cache.keep is None):
            raise ValueError("a decoding with a cache cannot be made again without it")
        self.calls.append(Call((tokens, positions, valid, attend, cache), tokens.numel()))
        began = time.perf_counter()
        out = Model.hidden(self, tokens, positions, valid, attend, cache)
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
            states = model.hidden(*call.arguments).flatten(0, 1)
        else:
            assert states is not None
            model.logits(states[: call.rows])
