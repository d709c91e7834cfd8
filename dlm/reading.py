"""Streaming detokenization: the text of tokens as they become final."""

import weakref
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tokenizers.decoders import ByteLevel

from dlm.models.model import Model
from dlm.prompts import tokenizer_of, whole_text

HALF = "\ufffd"
"""Replacement character: bytes that are not, or not yet, a character."""
KEPT = 8  # tokens decoded again before new ones, if context changes their text
LONG = 32  # tokens; longer windows are not decoded again for every new token
AtStopToken = Literal["end", "cut", "ignore"]
"""What the first stop token of a choice does: see `Reader`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Facts about a tokenizer that decoding relies on."""

    local: bool  # text after a complete character does not depend on what is before it
    readable: frozenset[int]  # tokens whose text is independent of later ones, if not local
    longest: int  # most characters of a token
    silent: frozenset[int]  # special tokens, which texts omit


VOCABULARIES: Final[weakref.WeakKeyDictionary[Any, Vocabulary]] = weakref.WeakKeyDictionary()
"""Cached vocabularies, by tokenizer."""


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer, cached."""
    found = VOCABULARIES.get(tokenizer)
    if found is None:
        found = VOCABULARIES.setdefault(tokenizer, read_vocabulary(tokenizer))
    return found


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Read the vocabulary of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    local = isinstance(getattr(backend, "decoder", None), ByteLevel)  # joins bytes
    names = tokenizer.get_vocab()
    # Special tokens are omitted from text, so the tokens on both sides of one join. A run of bytes
    # that is not valid UTF-8 decodes to one sign each: none of it is known before the run ends.
    added = tokenizer.added_tokens_decoder
    special = (i for i in added if added[i].special)
    silent = frozenset((*tokenizer.all_special_ids, *special))
    read = () if local else (i for name, i in names.items() if not is_byte(name))
    readable = frozenset(read) - silent
    return Vocabulary(local, readable, max(map(len, names), default=1), silent)


class Reader:
    """The text of one choice, produced incrementally and never taken back.

    However the tokens are split, the pieces add up to `decode_text` of the whole span, or to
    `whole_text` if stop tokens are ignored, cut before the stop text that begins first. New tokens
    are decoded after a few of those before them, and their text is the difference. If it does not
    continue the earlier text, all tokens are decoded.

    Args:
        model: gives the tokenizer and the stop tokens.
        stop: texts that end the choice.
        at_stop_token: what the first stop token does: "end" ends the choice; "cut" ends only its
            text, which equals that of `dlm.generate` when rows continue after it; "ignore" does
            nothing, as in `dlm.infill`.
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
        self.count = 0  # tokens, through the stop token or stop text that ends it
        self.given = ""
        self.tokens: list[int] = []
        self.readable = 0  # leading tokens whose text no longer depends on later ones
        self.seen = 0  # tokens that have been decoded
        # The window: tokens that are decoded again. The text of its head is known already.
        self.begin = 0
        self.head = ""
        self.known = ""  # text of all tokens up to the end of the head

    @property
    def ended(self) -> bool:
        """Whether a stop token ended the choice."""
        return self.silent and self.at_stop_token == "end"

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens, and return the text that is now final."""
        if self.stopped or self.ended:
            return ""
        self.add(self.counted(tokens))
        new, size = self.readable - self.seen, self.readable - self.begin
        if not new or (size > LONG and new * 8 < size):
            return ""
        text = self.read(self.readable).rstrip(HALF)
        # Some tokenizers change the text of earlier tokens: wait until it agrees again.
        return self.give(text, self.withheld(text)) if text.startswith(self.given) else ""

    def read(self, end: int) -> str:
        """Text of the first `end` tokens."""
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
        """Move the window's start, once it is twice as long as needed, if the text stays equal."""
        kept = 0 if self.vocabulary.local else KEPT
        begin = end - kept
        if begin - self.begin < kept:
            return
        head = whole_text(self.model, self.tokens[begin:end]) if kept else ""
        if self.vocabulary.local or (head and text.endswith(head)):
            self.begin, self.head, self.known = begin, head, text

    def end(self, tokens: Sequence[int]) -> str:
        """The remaining text, given the tokens of the whole span."""
        if self.stopped:
            return ""
        self.count, self.silent = 0, False
        self.tokens = [*self.counted(tokens)]
        text = whole_text(self.model, self.tokens)
        return self.give(text, len(text))

    def counted(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens that have text; updates the token count and whether the text has ended."""
        if self.silent:
            place: int | None = 0
        else:
            stops = () if self.at_stop_token == "ignore" else self.model.spec.stop_ids
            place = next((i for i, token in enumerate(tokens) if token in stops), None)
            self.silent = place is not None
        self.count += place + 1 if place is not None and self.ended else len(tokens)
        return tokens[:place]

    def add(self, tokens: Sequence[int]) -> None:
        """Append tokens, and find the last one whose text does not depend on later ones."""
        local, readable = self.vocabulary.local, self.vocabulary.readable
        ends = range(len(tokens), 0, -1)
        last = next((end for end in ends if local or tokens[end - 1] in readable), None)
        if last is not None:
            self.readable = len(self.tokens) + last
        self.tokens += tokens

    def withheld(self, text: str) -> int:
        """Where the longest suffix of a text begins that may become a stop text."""
        room = min(len(text) - len(self.given), max(map(len, self.stop), default=0) - 1)
        lengths = (
            length
            for length in range(room, 0, -1)
            if any(len(stop) > length and text.endswith(stop[:length]) for stop in self.stop)
        )
        return len(text) - next(lengths, 0)

    def give(self, text: str, end: int) -> str:
        """The new text up to `end`, or up to a stop text before it."""
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
        """Fewest tokens whose text contains the stop text that ended the choice."""

        def holds(count: int) -> bool:
            text = whole_text(self.model, self.tokens[:count])
            return any(text.startswith(stop, len(self.given)) for stop in self.stop)

        return bisect_left(range(len(self.tokens)), True, key=holds)


def is_byte(name: str) -> bool:
    """Whether a token represents one byte, such as <0xE2>."""
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")
