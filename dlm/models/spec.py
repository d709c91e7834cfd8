"""Facts of a model that are not the user's to choose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


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
    shift: bool = False  # whether the network's output at i predicts token i + 1
    block_size: int | None = None  # tokens that see each other and what is before; None: all do
    causal: bool = False  # whether what is before a block sees nothing behind itself
    reordered: bool = False
    """Whether attention is causal with all masks behind all tokens, see `masks_last`."""
    anchored: bool = False
    """Whether blocks of attention are counted from the first blank of a row; what is before is
    one."""
    never: tuple[int, ...] = ()  # further ids that are never sampled
    expand_id: int | None = None  # asks for another blank; sampled where blanks may grow alone
    suffix: tuple[int, ...] = ()  # ids that close every row
    frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Ids in front of a text with blanks and behind it; None where the tokenizer says which."""
    caches: bool = True  # whether the network takes keys and values of earlier forwards
    chat_options: tuple[tuple[str, bool], ...] = ()  # variables of the chat template

    @property
    def grid(self) -> int | None:
        """Blocks of attention begin at multiples of this; None where they may begin anywhere."""
        return None if self.causal or self.anchored else self.block_size

    @property
    def banned(self) -> Sequence[int]:
        """Ids that are never sampled: the mask, the unused rows and the family's own."""
        asks = () if self.expand_id is None else (self.expand_id,)
        return (self.mask_id, *range(*self.unused), *self.never, *asks)

    @property
    def growing(self) -> "ModelSpec":
        """The same where the token that asks for another blank is sampled like any other."""
        return replace(self, expand_id=None)
