"""What decoders declare unless they say otherwise."""

from typing import Final, Self

from dlm.types import Facts

MOST_BRANCHES: Final = 64
"""Branches of a row: each is evaluated, and keeps keys of its own where there is a cache."""

MOST_BLOCKS: Final = 64
"""Blocks that are open at a time: each is computed at every forward."""


class Policy:
    """The usual declarations: one block at a time, only commits, and may look at what was sampled.

    Others have defaults without a base: `reads_committed`, `scores`, `top`, `caches`,
    `max_forwards` (`dlm.traits.Traits`).
    """

    __slots__ = ()

    @property
    def needs(self) -> frozenset[str]:
        """No statistic."""
        return frozenset()

    @property
    def mutates_committed(self) -> bool:
        """What is committed stays."""
        return False

    @property
    def cross_block(self) -> bool:
        """Only the active block changes."""
        return False

    @property
    def blind(self) -> bool:
        """The choice of positions may depend on the sampled tokens."""
        return False

    def bind(self, facts: Facts) -> Self:
        """The same policy, ready for one model."""
        return self


class Stateless(Policy):
    """A policy that carries nothing from one forward to the next."""

    __slots__ = ()

    def init_state(self, batch: int, length: int) -> None:
        """No state."""
