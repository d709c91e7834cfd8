"""Facts of a model that are not the user's to choose."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What decoding needs to know about a checkpoint."""

    family: str
    vocab_size: int  # rows of the vocabulary projection
    mask_id: int
    eos_id: int  # fills what follows a stop token
    stop_ids: tuple[int, ...]  # end of text, end of turn
    max_length: int  # tokens, prompt and generation together
    unused: tuple[int, int]  # first and end of the embedding rows no token owns

    @property
    def banned(self) -> Sequence[int]:
        """Ids that are never sampled: the mask and the unused rows."""
        return (self.mask_id, *range(*self.unused))
