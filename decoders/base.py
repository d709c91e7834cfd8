"""What decoders without state share."""

from typing import ClassVar


class Stateless:
    """A policy that carries nothing from one forward to the next."""

    __slots__ = ()
    mutates_committed: ClassVar[bool] = False

    def init_state(self, batch: int, length: int) -> None:
        """No state."""
