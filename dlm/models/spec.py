"""The facts of a model, which users do not choose when decoding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The facts of a checkpoint that decoding depends on."""

    family: str
    vocab_size: int  # rows of the vocabulary projection
    mask_id: int
    eos_id: int  # fills a row after a stop token
    stop_ids: tuple[int, ...]  # end of text, end of turn
    max_length: int  # tokens, prompt and generation together
    unused: tuple[int, int]  # first and end of the embedding rows that belong to no token
    shift: bool = False  # whether the network's output at i predicts token i + 1
    block_size: int | None = None  # tokens of an attention block; None is bidirectional
    causal: bool = False  # whether attention is causal before the active block
    reordered: bool = False
    """Whether attention is causal in an order that puts masks last, see `masks_last`."""
    anchored: bool = False
    """Whether attention blocks are counted from the first blank of a row; everything before it is
    one block."""
    never: tuple[int, ...] = ()  # further ids that are never sampled
    expand_id: int | None = None  # asks for another blank; sampled only where blanks may grow
    suffix: tuple[int, ...] = ()  # ids that end every row
    frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Ids before and after a text with blanks; None leaves them to the tokenizer."""
    caches: bool = True  # whether the network can attend to cached keys and values
    chat_options: tuple[tuple[str, bool], ...] = ()  # variables of the chat template

    @property
    def grid(self) -> int | None:
        """Attention blocks begin at multiples of this; None if they may begin anywhere."""
        return None if self.causal or self.anchored else self.block_size

    @property
    def banned(self) -> Sequence[int]:
        """Ids that are never sampled: the mask, unused rows, `never`, and the expand token."""
        asks = () if self.expand_id is None else (self.expand_id,)
        return (self.mask_id, *range(*self.unused), *self.never, *asks)

    @property
    def growing(self) -> "ModelSpec":
        """The same facts for growing blanks: the expand token is sampled like any other."""
        return replace(self, expand_id=None)
