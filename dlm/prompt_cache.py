"""Automatic prefix caching: keys and values of decoded rows, for rows with the same prefix.

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
"""The keys and the values of a layer."""
LOG: Final = logging.getLogger("dlm.prompt_cache")
GIB: Final = 1 << 30
LEAST: Final = 32
"""Fewest tokens of a page: many small pages would take more calls than they save."""


class PromptCache:
    """Keys and values of prompts and answers, reused by later rows that begin with the same tokens.

    Automatic prefix caching (Kwon et al. 2023, arXiv:2309.06180) for block-attention models. In
    these, a token's keys and values depend on nothing after its block, so the reused values are
    those that would be computed, up to rounding. A row stores its prompt after the first forward
    pass, and its answer, except for the last block, after the last one. A page holds as many whole
    blocks as reach 32 tokens. The least recently used pages are evicted.

    After training the network or changing its weights, create a new cache. With `refresh_every`,
    reused keys and values are recomputed like the rest of the row. On a GPU, all users of a cache
    must work on the same stream.

    Args:
        model: the model, from `dlm.load`.
        gib: size in GiB, allocated when the first row is stored; by default a sixteenth of a GPU's
            memory, or 1 on other devices.

    Raises:
        ValueError: the size is invalid, or keys and values of the model family depend on the whole
            row.
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
        self.kind: tuple[Any, ...] = ()  # their device and dtype
        self.lock = RLock()  # reentrant: a stream collected while it is held stores its rows
        self.changing = False  # whether the slots may lag behind the ledger

    @staticmethod
    def suits(model: Model) -> bool:
        """Whether a model's keys and values depend on nothing after a block."""
        spec = model.spec
        return spec.block_size is not None and not spec.anchored and spec.caches

    @staticmethod
    def checked(prompt_cache: object, model: Model) -> "PromptCache":
        """Return `prompt_cache` if it is one and was made for this model.

        Raises:
            ValueError: it is not.
        """
        if not isinstance(prompt_cache, PromptCache):
            raise ValueError(f"prompt_cache must be a dlm.PromptCache, got {prompt_cache!r}")
        # The spec determines the attention blocks.
        if prompt_cache.network() is not model.network or prompt_cache.spec != model.spec:
            raise ValueError("prompt_cache must be one of this model, got one of another")
        return prompt_cache

    @staticmethod
    def serves(settings: Settings) -> bool:
        """Whether rows with these settings are stored: with a cache, and without guidance."""
        return settings.caching != "none" and not settings.cfg_scale

    @property
    def tokens(self) -> int:
        """Number of tokens stored."""
        return len(self.ledger.slots) * self.page

    def known(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of a row are stored; an estimate, as no lock is taken."""
        return len(self.ledger.path(tokens)) * self.page

    def recall(self, rows: Sequence[Sequence[int]], room: Callable[[], Cache]) -> list[int]:
        """Copy the stored prefixes of rows into their cache.

        Args:
            rows: tokens of each row before its first block.
            room: gives their cache, if one is needed.

        Returns:
            How many tokens were copied for each row.
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
                    cache.layer(layer, keys[:1].transpose(1, 2))  # allocates it if needed
                self.copy(cache, places, back=True)
        return [len(slots) * self.page for slots in found]

    def keep(self, cache: Cache, rows: Mapping[int, Sequence[int]]) -> None:
        """Store keys and values of some rows of a cache, unless this thread is already storing.

        Args:
            cache: keys and values.
            rows: by row number, the final tokens of the row.
        """
        with self.held() as whole:
            if not whole or self.network() is None:  # the network may be gone, with its streams
                return
            if self.kind != self.kind_now():  # first use, or the network was moved
                self.make_room(cache)
            try:
                self.write(cache, rows)
            except BaseException as error:  # the slots' contents are unknown
                self.ledger = Ledger(self.page, self.ledger.most)
                if not isinstance(error, torch.OutOfMemoryError):
                    raise
                LOG.warning("no memory was left to keep prompts: what was kept is forgotten")

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the lock.

        Yields:
            Whether the slots hold what the ledger says. They may not if the garbage collector
            closes a stream while this thread is between updating the two.
        """
        with self.lock:
            whole = not self.changing
            try:
                self.changing = True
                yield whole
            finally:
                self.changing = not whole

    def write(self, cache: Cache, rows: Mapping[int, Sequence[int]]) -> None:
        """Copy pages that are not stored yet to slots."""
        taken: dict[int, tuple[int, int, int]] = {}  # a slot may come twice: the last wins
        for row, tokens in rows.items():
            for page, slot in self.ledger.add(tokens).items():
                taken[slot] = (row, page, slot)
        if taken:
            self.copy(cache, [*taken.values()], back=False)

    def kind_now(self) -> tuple[Any, ...]:
        """Device and dtype of the keys and values that a forward pass would make."""
        network = self.network()
        assert network is not None
        device = network.device
        autocast = torch.is_autocast_enabled(device.type)
        return device, network.dtype, autocast and torch.get_autocast_dtype(device.type)

    def copy(self, cache: Cache, places: Sequence[tuple[int, int, int]], *, back: bool) -> None:
        """Copy pages from rows to slots, or `back`; places are (row, page of the row, slot)."""
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
        """Allocate slots for pages of such rows; if there is no memory, warn and have none."""
        self.kind, self.layers, self.ledger = self.kind_now(), [], Ledger(self.page, 0)
        parts = [part for layer in cache.layers for part in layer]
        size = self.page * sum(part[0, 0].nbytes for part in parts)
        count = self.bytes // size
        try:
            self.layers = [
                (self.slots(count, keys), self.slots(count, values))
                for keys, values in cache.layers
            ]
        except RuntimeError:  # on a CPU; the GPU's OutOfMemoryError is a subclass
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
        """Memory for `count` pages of keys or values like those of a cache, [B, L, H, E]."""
        return like.new_empty(count, self.page, *like.shape[2:])


def usual(device: torch.device) -> int:
    """Default size of a prompt cache in bytes."""
    if device.type != "cuda":
        return GIB
    return memory_of(device) // SHARE
