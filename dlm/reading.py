"""Text of tokens as they become final."""

import weakref
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tokenizers.decoders import ByteLevel

from dlm.models.model import Model
from dlm.prompts import tokenizer_of, whole_text

HALF = "\ufffd"
"""Stands for bytes that are no character, or not yet one."""
KEPT = 8  # tokens decoded again in front of new ones, where these read otherwise alone
LONG = 32  # tokens; more of them are not decoded again for every new one
AtStopToken = Literal["end", "cut", "ignore"]
"""What the first stop token of a choice does: see `Reader`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What all texts of a tokenizer have in common."""

    local: bool  # what follows a whole character is decoded as if it stood alone
    readable: frozenset[int]  # tokens whose text does not hang on those that follow, if not local
    longest: int  # characters of a token, at most
    silent: frozenset[int]  # special tokens, which texts leave out


VOCABULARIES: Final[weakref.WeakKeyDictionary[Any, Vocabulary]] = weakref.WeakKeyDictionary()
"""Of each tokenizer that was read."""


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer, read once."""
    found = VOCABULARIES.get(tokenizer)
    if found is None:
        found = VOCABULARIES.setdefault(tokenizer, read_vocabulary(tokenizer))
    return found


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    local = isinstance(getattr(backend, "decoder", None), ByteLevel)  # joins bytes
    names = tokenizer.get_vocab()
    # Special ones are left out, so that what stands on both sides of them joins. A run of bytes
    # that is no text is so many signs: none of it is known before its end.
    added = tokenizer.added_tokens_decoder
    special = (i for i in added if added[i].special)
    silent = frozenset((*tokenizer.all_special_ids, *special))
    read = () if local else (i for name, i in names.items() if not is_byte(name))
    readable = frozenset(read) - silent
    return Vocabulary(local, readable, max(map(len, names), default=1), silent)


class Reader:
    """The text of one choice: what it gave is never taken back.

    Together it gives `decode_text` of the whole span, or `whole_text` where stop tokens mean
    nothing, cut in front of the stop text that begins first, however the tokens came. New tokens
    are decoded behind a few of those before them, and their text is what they add; where it does
    not continue the earlier text all are decoded.

    Args:
        model: whose tokenizer and stop tokens they are.
        stop: texts that end the choice.
        at_stop_token: what the first stop token does: end the choice; only end its text, which
            is that of `dlm.generate` where rows go on behind it; or nothing, as in `dlm.infill`.
    """

    def __init__(
        self, model: Model, stop: Sequence[str] = (), *, at_stop_token: AtStopToken = "end"
    ) -> None:
        self.vocabulary = vocabulary_of(tokenizer_of(model, "text"))
        self.model = model
        self.stop = stop
        self.at_stop_token = at_stop_token
        self.stopped = False  # whether a stop text ended it
        self.silent = False  # whether a stop token ended its text
        self.count = 0  # tokens, up to the stop token or the stop text that ends it, and with it
        self.given = ""
        self.tokens: list[int] = []
        self.readable = 0  # tokens in front of those whose text hangs on what follows
        self.seen = 0  # tokens that have been decoded
        # The window: tokens that are decoded again. Its head is text that is known already.
        self.begin = 0
        self.head = ""
        self.known = ""  # text of all tokens up to the end of the head

    @property
    def ended(self) -> bool:
        """Whether a stop token ended it."""
        return self.silent and self.at_stop_token == "end"

    def push(self, tokens: Sequence[int]) -> str:
        """Text that is final now, after these further tokens."""
        if self.stopped or self.ended:
            return ""
        self.add(self.counted(tokens))
        new, size = self.readable - self.seen, self.readable - self.begin
        if not new or (size > LONG and new * 8 < size):
            return ""
        text = self.read(self.readable).rstrip(HALF)
        # Some tokenizers change what they said of earlier tokens: wait until they say it again.
        return self.give(text, self.withheld(text)) if text.startswith(self.given) else ""

    def read(self, end: int) -> str:
        """Text of all tokens up to `end`."""
        self.seen = end
        text = whole_text(self.model, self.tokens[self.begin : end])
        if not text.startswith(self.head):
            self.begin, self.head, self.known = 0, "", ""
            return whole_text(self.model, self.tokens[:end])
        text = self.known + text[len(self.head) :]
        if not text.endswith(HALF):
            self.advance(text, end)
        return text

    def advance(self, text: str, end: int) -> None:
        """Let the window begin later, once it is twice as long as need be, if it reads alike."""
        kept = 0 if self.vocabulary.local else KEPT
        begin = end - kept
        if begin - self.begin < kept:
            return
        head = whole_text(self.model, self.tokens[begin:end]) if kept else ""
        if self.vocabulary.local or (head and text.endswith(head)):
            self.begin, self.head, self.known = begin, head, text

    def end(self, tokens: Sequence[int]) -> str:
        """Text that remains, of the tokens of the whole span."""
        if self.stopped:
            return ""
        self.count, self.silent = 0, False
        self.tokens = [*self.counted(tokens)]
        text = whole_text(self.model, self.tokens)
        return self.give(text, len(text))

    def counted(self, tokens: Sequence[int]) -> Sequence[int]:
        """Those that are read; they are counted, and what else the choice is made of."""
        if self.silent:
            place: int | None = 0
        else:
            stops = () if self.at_stop_token == "ignore" else self.model.spec.stop_ids
            place = next((i for i, token in enumerate(tokens) if token in stops), None)
            self.silent = place is not None
        self.count += place + 1 if place is not None and self.ended else len(tokens)
        return tokens[:place]

    def add(self, tokens: Sequence[int]) -> None:
        """Keep further tokens, and find the last whose text does not hang on what follows."""
        local, readable = self.vocabulary.local, self.vocabulary.readable
        ends = range(len(tokens), 0, -1)
        last = next((end for end in ends if local or tokens[end - 1] in readable), None)
        if last is not None:
            self.readable = len(self.tokens) + last
        self.tokens += tokens

    def withheld(self, text: str) -> int:
        """Where the longest end of a text begins that may become a stop text."""
        room = min(len(text) - len(self.given), max(map(len, self.stop), default=0) - 1)
        lengths = (
            length
            for length in range(room, 0, -1)
            if any(len(stop) > length and text.endswith(stop[:length]) for stop in self.stop)
        )
        return len(text) - next(lengths, 0)

    def give(self, text: str, end: int) -> str:
        """What was not given yet of a text up to `end`, or to a stop text in front of it."""
        begin = len(self.given)
        found = min((at for stop in self.stop if (at := text.find(stop, begin)) >= 0), default=None)
        if found is not None and found <= end:
            self.stopped, end = True, found
        piece = text[begin:end]
        self.given += piece
        if self.stopped:
            self.count = self.reach()
        return piece

    def reach(self) -> int:
        """Fewest tokens whose text holds the stop text that ended it."""

        def holds(count: int) -> bool:
            text = whole_text(self.model, self.tokens[:count])
            return any(text.startswith(stop, len(self.given)) for stop in self.stop)

        return bisect_left(range(len(self.tokens)), True, key=holds)


def is_byte(name: str) -> bool:
    """Whether a token stands for one byte, such as <0xE2>."""
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")
