"""The text of individual tokens: their bytes, and where they begin in the text."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from dlm.models.model import Model
from dlm.prompts import tokenizer_of, whole_text
from dlm.reading import KEPT, is_byte, vocabulary_of


@dataclass(frozen=True, slots=True)
class Spelled:
    """A token's part of a text."""

    name: str  # its text; "\\xe2" for a lone byte that is no character; a special token's name
    spelled: bytes | None  # its part of the text's UTF-8; None if the text omits it
    offset: int  # characters of the text before it, or before the character it is part of


class Speller:
    """Spells the tokens of a text incrementally, each once and in order.

    Args:
        model: gives the tokenizer.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tokenizer = tokenizer_of(model, "text")
        self.vocabulary = vocabulary_of(self.tokenizer)
        self.count = 0  # tokens so far
        self.characters = 0  # complete characters of the text so far
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")  # if tokens are bytes
        # Otherwise: tokens that are decoded again, and byte tokens that may not be valid UTF-8.
        self.window: list[int] = []
        self.run: list[tuple[int, str, bytes | None]] = []

    def push(self, tokens: Sequence[int]) -> list[Spelled]:
        """Add tokens; returns those whose text does not depend on later tokens."""
        self.count += len(tokens)
        return [spelled for token in tokens for spelled in self.spell(token)]

    def end(self) -> list[Spelled]:
        """The remaining tokens, once no other follows."""
        return list(self.flush())

    def instead(self, before: Sequence[int], tokens: Sequence[int]) -> list[Spelled]:
        """How each of some alternative tokens would read after others; with offset 0."""
        window: list[int] = []  # as in `spell`, which skips special tokens
        for token in reversed(before):
            if token not in self.vocabulary.silent:
                window.insert(0, token)
            if len(window) == KEPT:
                break
        text = whole_text(self.model, window) if tokens and not self.vocabulary.local else ""
        return [self.other(window, text, token) for token in tokens]

    def other(self, window: Sequence[int], text: str, token: int) -> Spelled:
        """How a token would read after a few tokens that read as `text`."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name is None or token in self.vocabulary.silent:
            return Spelled(name or "", None, 0)
        if self.vocabulary.local or is_byte(name):
            data = as_bytes(name) if self.vocabulary.local else byte_of(name)
            return Spelled(shown(data), data, 0)
        longer = whole_text(self.model, [*window, token])
        new = longer[shared(text, longer) :]
        return Spelled(new, new.encode(), 0)

    def spell(self, token: int) -> Iterator[Spelled]:
        """A token, along with those that waited for it."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name is None or token in self.vocabulary.silent:
            if self.run:
                self.run.append((token, name or "", None))
            else:
                yield Spelled(name or "", None, self.characters)
        elif self.vocabulary.local:
            yield self.of_bytes(as_bytes(name))
        elif is_byte(name):
            spelled = byte_of(name)
            self.run.append((token, shown(spelled), spelled))
        else:
            yield from self.flush()
            yield self.of_text(token)

    def of_bytes(self, spelled: bytes) -> Spelled:
        """A token of a byte-level vocabulary."""
        self.characters += len(self.decoder.decode(spelled[:1]))
        begun = bool(self.decoder.getstate()[0])
        offset = self.characters - (not begun and bool(spelled))
        self.characters += len(self.decoder.decode(spelled[1:]))
        return Spelled(shown(spelled), spelled, offset)

    def of_text(self, token: int) -> Spelled:
        """A token whose text is what it adds to the text of those before it."""
        before, after = self.longer(token)
        common = shared(before, after)
        offset = self.characters - (len(before) - common)
        self.characters = offset + len(after) - common
        return Spelled(after[common:], after[common:].encode(), offset)

    def longer(self, *tokens: int) -> tuple[str, str]:
        """Text of the last few tokens, without and with these appended; advances the window."""
        more = [*self.window, *tokens]
        texts = whole_text(self.model, self.window), whole_text(self.model, more)
        self.window = more[-KEPT:]
        return texts

    def flush(self) -> Iterator[Spelled]:
        """Pending byte tokens: text if they are valid UTF-8 together, else one sign for each."""
        run, self.run = self.run, []
        if not run:
            return
        data = [spelled for _, _, spelled in run if spelled is not None]
        before, after = self.longer(*(token for token, _, spelled in run if spelled is not None))
        ends = [0, *ends_of(data)]
        begin, place = self.characters, 0
        self.characters += len(after) - len(before)
        missing = ends[-1] - (self.characters - begin)  # a leading space of a text may be dropped
        for _, name, spelled in run:
            yield Spelled(name, spelled, begin + max(0, ends[place] - missing))
            place += spelled is not None


def ends_of(data: Sequence[bytes]) -> list[int]:
    """Characters up to the end of each byte token; one each if the bytes are not valid UTF-8."""
    joined = b"".join(data)
    if joined.decode(errors="ignore").encode() != joined:
        return [*range(1, len(data) + 1)]
    return [len(joined[:end].decode(errors="ignore")) for end in range(1, len(data) + 1)]


def shared(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def byte_of(name: str) -> bytes:
    """The byte that a token such as <0xE2> represents."""
    return bytes([int(name[3:5], 16)])


def shown(spelled: bytes) -> str:
    """Bytes as text, with escapes for those that are not valid UTF-8."""
    return spelled.decode(errors="backslashreplace")


@cache
def letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary represents (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    moved = {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in plain} | moved


def as_bytes(name: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary adds to a text."""
    known = letters()
    found = [known.get(letter) for letter in name]
    whole = [byte for byte in found if byte is not None]
    return bytes(whole) if len(whole) == len(name) else name.encode()
