"""Text of tokens as they become final."""

from collections.abc import Sequence

from tokenizers.decoders import ByteLevel

from dlm.models.model import Model
from dlm.prompts import decode_text, tokenizer_of, whole_text

HALF = "\ufffd"
"""Stands for bytes that are no character, or not yet one."""


class Reader:
    """The text of one choice: what it gave is never taken back.

    Together it gives `decode_text` of the whole span, cut in front of the stop text that begins
    first, however the tokens came.

    Args:
        model: whose tokenizer and stop tokens they are.
        stop: texts that end the choice.
    """

    def __init__(self, model: Model, stop: Sequence[str] = ()) -> None:
        tokenizer = tokenizer_of(model, "text")
        self.model = model
        self.stop = stop
        self.stopped = False  # whether a stop text ended it
        self.ended = False  # whether a stop token did
        self.count = 0  # tokens, up to the first stop token and with it
        self.given = ""
        # Bytes joined: what follows a whole character is decoded as if it stood alone.
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.local = isinstance(getattr(backend, "decoder", None), ByteLevel)
        # They are left out, so that what stands on both sides of them joins.
        added = tokenizer.added_tokens_decoder
        self.silent = {*tokenizer.all_special_ids, *(i for i in added if added[i].special)}
        self.known = ""  # text of the tokens that are not in `tokens` any more
        self.tokens: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """Text that is final now, after these further tokens."""
        if self.stopped or self.ended:
            return ""
        self.tokens += self.counted(tokens)
        text = self.known + whole_text(self.model, self.readable(self.tokens))
        if self.local and not text.endswith(HALF):
            self.known, self.tokens = text, []
        text = text.rstrip(HALF)
        # Some tokenizers change what they said of earlier tokens: wait until they say it again.
        return self.give(text, self.withheld(text)) if text.startswith(self.given) else ""

    def end(self, tokens: Sequence[int]) -> str:
        """Text that remains, of the tokens of the whole span."""
        if self.stopped:
            return ""
        self.count, self.ended = 0, False
        self.counted(tokens)
        text = decode_text(self.model, tokens)
        return self.give(text, len(text))

    def counted(self, tokens: Sequence[int]) -> Sequence[int]:
        """Those in front of the first stop token, which are counted, and it with them."""
        stops = self.model.spec.stop_ids
        place = next((i for i, token in enumerate(tokens) if token in stops), None)
        self.ended = place is not None
        self.count += len(tokens) if place is None else place + 1
        return tokens[:place]

    def readable(self, tokens: list[int]) -> list[int]:
        """Tokens without those at the end whose text hangs on the tokens that follow."""
        if self.local:
            return tokens
        # A run of bytes that is no text is so many signs: none of it is known before its end.
        names = self.model.tokenizer.convert_ids_to_tokens(tokens)  # type: ignore[union-attr]
        end = len(tokens)
        while end and (tokens[end - 1] in self.silent or is_byte(names[end - 1])):
            end -= 1
        return tokens[:end]

    def withheld(self, text: str) -> int:
        """Where the longest end of a text begins that may become a stop text."""
        room = len(text) - len(self.given)
        lengths = (
            length
            for stop in self.stop
            for length in range(min(room, len(stop) - 1), 0, -1)
            if text.endswith(stop[:length])
        )
        return len(text) - max(lengths, default=0)

    def give(self, text: str, end: int) -> str:
        """What was not given yet of a text up to `end`, or to a stop text in front of it."""
        begin = len(self.given)
        found = min((at for stop in self.stop if (at := text.find(stop, begin)) >= 0), default=None)
        if found is not None and found <= end:
            self.stopped, end = True, found
        piece = text[begin:end]
        self.given += piece
        return piece


def is_byte(name: str | None) -> bool:
    """Whether a token stands for one byte, such as <0xE2>, or for nothing."""
    return name is None or (len(name) == 6 and name.startswith("<0x") and name.endswith(">"))
