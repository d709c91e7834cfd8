"""Default declarations of decoders."""

from typing import Final, Self

from dlm.types import Facts

MOST_BRANCHES: Final = 64
"""Most branches per row. Each branch is evaluated, and has its own keys in a KV cache."""

MOST_BLOCKS: Final = 64
"""Most blocks open at the same time. Every forward pass computes all of them."""


class Policy:
    """Default declarations: one active block, commits only, positions may depend on the samples.

    `reads_committed`, `scores`, `top`, `caches` and `max_forwards` are not declared here; their
    defaults are in `dlm.traits.Traits`.
    """

    __slots__ = ()

    @property
    def needs(self) -> frozenset[str]:
        """No statistics."""
        return frozenset()

    @property
    def mutates_committed(self) -> bool:
        """Committed tokens never change."""
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
        """Return the same policy, ready for one model."""
        return self


class Stateless(Policy):
    """A policy that carries no state from one forward pass to the next."""

    __slots__ = ()

    def init_state(self, batch: int, length: int) -> None:
        """Return no state."""
