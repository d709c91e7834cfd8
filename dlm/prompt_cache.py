"""Keys and values of rows that were decoded, for rows that begin with the same tokens.

Shapes: B rows, L canvas, S slots, P tokens of a page, H heads, E head width.
"""

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any, Final

import torch
from torch import Tensor

from dlm.cache import Cache
from dlm.execution import SHARE, memory_of
from dlm.host import send
from dlm.models.model import Model
from dlm.options import LARGEST, names_checked, number
from dlm.pages import Ledger
from dlm.prompts import check_model
from dlm.settings import Settings

Layer = tuple[Tensor, Tensor]
"""Its keys and its values."""
LOG: Final = logging.getLogger("dlm.prompt_cache")
GIB: Final = 1 << 30
LEAST: Final = 32
"""Tokens of a page, at least: many small ones would take more calls than they are worth."""


class PromptCache:
    """Keys and values of prompts and answers, which later rows that begin alike take over.

    Automatic prefix caching (Kwon et al. 2023, arXiv:2309.06180) for networks whose attention is
    in blocks: there a token's keys and values depend on nothing behind its block, so that what is
    taken over is what would be computed, up to rounding. A row leaves its prompt after the first
    forward and its answer, but for the last block, after the last one. They lie in pages of whole
    blocks, 32 tokens or a block; the pages used longest ago make room for others.

    Whoever trains the network, or gives it other weights, begins with a new one. With
    `refresh_every` what was taken over is computed again like all of the row. On a GPU those who
    share one work on the same stream.

    Args:
        model: what `dlm.load` gave.
        gib: of keys and values, taken at once when the first row is kept; by default a sixteenth of
            a GPU's memory, or one.

    Raises:
        ValueError: a bad size, or a family whose keys and values depend on all of a row.
    """

    @names_checked
    def __init__(self, model: Model, *, gib: float | None = None) -> None:
        check_model(model)
        if not self.suits(model):
            raise ValueError(
                f"prompt_cache must be None for {model.spec.family}: a prompt's keys and values "
                "are its own only where attention is in blocks that begin in it, as in LLaDA2 "
                "and SDAR"
            )
        size = None if gib is None else number("gib", gib, least=0.0, most=LARGEST)
        if size == 0:
            raise ValueError(f"gib must be above 0, got {gib!r}")
        self.network = weakref.ref(model.network)
        self.spec = model.spec
        self.bytes = usual(model.device) if size is None else int(size * GIB)
        block = model.spec.grid or 1
        self.page = block * -(-LEAST // block)
        self.ledger = Ledger(self.page, 0)
        self.layers: list[Layer] = []  # [S, P, H, E] each
        self.kind: tuple[Any, ...] = ()  # of numbers in them, and where they lie
        self.lock = RLock()  # a stream may be collected, and leave its rows, while it is held
        self.changing = False  # whether slots may not hold yet what the ledger says

    @staticmethod
    def suits(model: Model) -> bool:
        """Whether keys and values depend on nothing behind a block."""
        spec = model.spec
        return spec.block_size is not None and not spec.anchored and spec.caches

    @staticmethod
    def checked(prompt_cache: object, model: Model) -> "PromptCache":
        """It, if it is one and was made for this model.

        Raises:
            ValueError: it is not.
        """
        if not isinstance(prompt_cache, PromptCache):
            raise ValueError(f"prompt_cache must be a dlm.PromptCache, got {prompt_cache!r}")
        # The facts say which blocks of attention there are.
        if prompt_cache.network() is not model.network or prompt_cache.spec != model.spec:
            raise ValueError("prompt_cache must be one of this model, got one of another")
        return prompt_cache

    @staticmethod
    def serves(settings: Settings) -> bool:
        """Whether rows that are decoded so leave anything: not without a cache, nor guided ones."""
        return settings.caching != "none" and not settings.cfg_scale

    @property
    def tokens(self) -> int:
        """How many are kept."""
        return len(self.ledger.slots) * self.page

    def known(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that a row begins with are kept; a guess, as no lock is taken."""
        return len(self.ledger.path(tokens)) * self.page

    def recall(self, rows: Sequence[Sequence[int]], room: Callable[[], Cache]) -> list[int]:
        """Copy what is kept of rows to their cache.

        Args:
            rows: tokens of each in front of its first block.
            room: gives their cache, where one is needed.

        Returns:
            How many tokens of each that is.
        """
        with self.held():
            if self.kind != self.kind_now():
                return [0] * len(rows)
            found = [self.ledger.find(tokens) for tokens in rows]
            places = [
                (row, page, slot)
                for row, slots in enumerate(found)
                for page, slot in enumerate(slots)
            ]
            if places:
                cache = room()
                for layer, (keys, _) in enumerate(self.layers):
                    cache.layer(layer, keys[:1].transpose(1, 2))  # which makes it if need be
                self.copy(cache, places, back=True)
        return [len(slots) * self.page for slots in found]

    def keep(self, cache: Cache, rows: Mapping[int, Sequence[int]]) -> None:
        """Take over what a cache holds of some of its rows, unless this thread is at it already.

        Args:
            cache: keys and values.
            rows: by number of the row, its tokens as far as they are final.
        """
        with self.held() as whole:
            if not whole or self.network() is None:  # it may be collected along with its streams
                return
            if self.kind != self.kind_now():  # the first ones, or the network was moved
                self.make_room(cache)
            try:
                self.write(cache, rows)
            except BaseException as error:  # nobody knows what was written
                self.ledger = Ledger(self.page, self.ledger.most)
                if not isinstance(error, torch.OutOfMemoryError):
                    raise
                LOG.warning("no memory was left to keep prompts: what was kept is forgotten")

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep other threads out.

        Yields:
            Whether slots hold what the ledger says. They may not where the garbage collector closes
            a stream while this thread is between the two.
        """
        with self.lock:
            whole = not self.changing
            try:
                self.changing = True
                yield whole
            finally:
                self.changing = not whole

    def write(self, cache: Cache, rows: Mapping[int, Sequence[int]]) -> None:
        """Copy to slots what is not kept yet."""
        taken: dict[int, tuple[int, int, int]] = {}  # a slot may be taken twice: the last stays
        for row, tokens in rows.items():
            for page, slot in self.ledger.add(tokens).items():
                taken[slot] = (row, page, slot)
        if taken:
            self.copy(cache, [*taken.values()], back=False)

    def kind_now(self) -> tuple[Any, ...]:
        """What a forward would make keys and values of, and where."""
        network = self.network()
        assert network is not None
        device = network.device
        autocast = torch.is_autocast_enabled(device.type)
        return device, network.dtype, autocast and torch.get_autocast_dtype(device.type)

    def copy(self, cache: Cache, places: Sequence[tuple[int, int, int]], *, back: bool) -> None:
        """Copy pages from rows to slots, or back: row, page of the row and slot each."""
        index = torch.tensor(places).t().contiguous()
        count = 1 + max(page for _, page, _ in places)
        devices = {keys.device for keys, _ in self.layers}
        sent = {device: send(index, device) for device in devices}
        for layer in zip(self.layers, cache.layers, strict=True):
            for kept, whole in zip(*layer, strict=True):
                rows, pages, slots = sent[kept.device]
                paged = whole[:, : count * self.page].unflatten(1, (count, self.page))
                if back:
                    paged[rows, pages] = kept[slots]
                else:
                    kept[slots] = paged[rows, pages]

    def make_room(self, cache: Cache) -> None:
        """Make slots for pages of such rows; where there is no memory for them, say so and none."""
        self.kind, self.layers, self.ledger = self.kind_now(), [], Ledger(self.page, 0)
        parts = [part for layer in cache.layers for part in layer]
        size = self.page * sum(part[0, 0].nbytes for part in parts)
        count = self.bytes // size
        try:
            self.layers = [
                (self.slots(count, keys), self.slots(count, values))
                for keys, values in cache.layers
            ]
        except RuntimeError:  # of a CPU; of a GPU it is an OutOfMemoryError, which is one
            count = 0
        if not count:
            LOG.warning(
                "no prompts are kept: %.3g GiB were not to be had, or hold no page of %.3g GiB",
                self.bytes / GIB,
                size / GIB,
            )
            self.bytes, self.layers = 0, []
        self.ledger = Ledger(self.page, count)

    def slots(self, count: int, like: Tensor) -> Tensor:
        """Room for so many pages of keys or values as in a cache, [B, L, H, E]."""
        return like.new_empty(count, self.page, *like.shape[2:])


def usual(device: torch.device) -> int:
    """Bytes to keep prompts in unless others are named."""
    if device.type != "cuda":
        return GIB
    return memory_of(device) // SHARE
