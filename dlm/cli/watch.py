"""`dlm generate --watch`: show the canvas as it fills."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dlm.cli.results import note, summary

if TYPE_CHECKING:
    from dlm.models.model import Model
    from dlm.outputs import Snapshot

FRAME = 0.08  # least seconds that each forward pass stays on the screen
AGES = (
    "bold black on bright_green",
    "bold color(120)",
    "color(114)",
    "color(114)",
    "color(108)",
    "color(108)",
    "color(108)",
    "color(151)",
    "color(151)",
)
"""Style of a token by the forward passes since it was committed; older tokens are plain."""
EDITED = "bold black on bright_yellow"
REMASKED = "bold bright_red strike"
MASKED = "bright_black"
SPECIAL = "bright_black"


@dataclass(frozen=True, slots=True)
class Symbols:
    """Symbols for tokens that have no text of their own."""

    mask: str = "\u2591"
    special: str = "\u00b7"
    newline: str = "\u21b5"

    @classmethod
    def of(cls, encoding: str) -> "Symbols":
        """The symbols that an encoding can write."""
        try:
            f"{cls().mask}{cls().special}{cls().newline}".encode(encoding)
        except (LookupError, UnicodeEncodeError):
            return cls("_", ".", "\\")
        return cls()


@dataclass(slots=True)
class Picture:
    """The canvas of one row after the latest forward pass."""

    tokenizer: Any
    mask_id: int
    tokens: list[int]
    special: frozenset[int]  # ids without a text
    symbols: Symbols
    born: dict[int, int] = field(default_factory=dict)  # position -> forward pass that committed it
    edited: list[int] = field(default_factory=list)  # by the latest forward pass
    remasked: dict[int, int] = field(default_factory=dict)  # position -> the remasked token
    forward: int = 0
    decoded: int = 0  # positions committed, less those remasked

    def update(self, snapshot: "Snapshot") -> None:
        """Apply the outcome of a forward pass."""
        self.forward = snapshot.forward
        self.decoded += len(snapshot.committed) - len(snapshot.remasked)
        self.remasked = {position: self.tokens[position] for position in snapshot.remasked}
        # A token filled in after a stop token may replace one that was committed there.
        same = {n for n in self.born if self.tokens[n] == snapshot.tokens[n]}
        self.born = {n: self.born[n] for n in same}
        self.tokens = snapshot.tokens
        self.edited = snapshot.edited
        written = {*snapshot.committed, *snapshot.edited}.difference(snapshot.filled)
        self.born |= dict.fromkeys(written, snapshot.forward)

    def piece(self, position: int) -> str:
        """The text to draw at a position; a line break is kept, after its symbol.

        A token that the latest forward pass remasked is drawn once more, struck through.
        """
        token = self.remasked.get(position, self.tokens[position])
        if token == self.mask_id:
            return self.symbols.mask
        if token in self.special:
            return self.symbols.special
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        text = text.replace("\r\n", "\n").replace("\t", "    ")
        shown = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
        return shown.replace("\n", self.symbols.newline + "\n")

    def style(self, position: int) -> str:
        """The style of a position."""
        token = self.tokens[position]
        if token == self.mask_id:
            return REMASKED if position in self.remasked else MASKED
        if position in self.edited:
            return EDITED
        age = self.forward - self.born.get(position, -len(AGES))
        if age < len(AGES):
            return AGES[age]
        return SPECIAL if token in self.special else ""

    def lines(self, width: int) -> list[Text]:
        """The canvas as lines of `width` cells, split inside words: wrapped ones would jump."""
        lines = [Text()]
        column = 0
        for position in range(len(self.tokens)):
            style = self.style(position)
            for char in self.piece(position):
                if char == "\n" or column + cell_len(char) > width:
                    lines.append(Text())
                    column = 0
                if char != "\n":
                    lines[-1].append(char, style)
                    column += cell_len(char)
        return lines

    def plain(self) -> str:
        """The canvas on one line, with remasked tokens between tildes."""
        pieces = map(self.piece, range(len(self.tokens)))
        struck = (f"~{p}~" if n in self.remasked else p for n, p in enumerate(pieces))
        return "".join(struck).replace("\n", "")

    @property
    def left(self) -> int:
        """Masks left on the canvas."""
        return self.tokens.count(self.mask_id)

    @property
    def rate(self) -> float:
        """Tokens per forward pass so far."""
        return self.decoded / max(self.forward, 1)

    def caption(self) -> str:
        """The progress of decoding as one line."""
        back = f"   {len(self.remasked)} taken back" if self.remasked else ""
        rate = f"{self.rate:.2f} tokens per forward"
        return f"forward {self.forward}   {rate}   {self.left} left{back}"

    def frame(self, width: int, height: int) -> RenderableType:
        """Canvas and caption; if the canvas is taller than the screen, the part that has masks."""
        lines = self.lines(width)
        room = max(height - 3, 1)
        masks = (n for n, line in enumerate(lines) if self.symbols.mask in line.plain)
        first = max(min(next(masks, 0) - room // 2, len(lines) - room), 0)
        return Group(*lines[first : first + room], Text(), Text(self.caption(), "dim"))


def watch(model: "Model", prompt: Any, options: Mapping[str, Any]) -> None:
    """Show one prompt being decoded, then print as usual."""
    from dlm.generation import stream
    from dlm.prompts import tokenizer_of
    from dlm.settings import Settings

    console = Console(highlight=False)
    length = Settings.of(options).gen_length
    tokenizer = tokenizer_of(model, "--watch")
    added = tokenizer.added_tokens_decoder.items()
    picture = Picture(
        tokenizer=tokenizer,
        mask_id=model.spec.mask_id,
        tokens=[model.spec.mask_id] * length,
        special=frozenset((*model.spec.stop_ids, *(id for id, token in added if token.special))),
        symbols=Symbols.of(console.encoding),
    )
    clock = Clock()
    snapshots = clock.timed(stream(model, prompt, **options))
    if console.is_terminal and not console.is_dumb_terminal:
        text = draw(snapshots, picture, console)
    else:
        note("stdout is no terminal: one line a forward")
        text = print_lines(snapshots, picture)
    typer.echo(text)
    note(summary(picture.forward, picture.rate, clock.seconds))


def draw(snapshots: Iterator["Snapshot"], picture: Picture, console: Console) -> str:
    """Show every forward pass in place; returns the final text."""
    text = ""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for snapshot in snapshots:
            picture.update(snapshot)
            live.update(picture.frame(*console.size), refresh=True)
            text = snapshot.text or ""
            time.sleep(FRAME)
        time.sleep(4 * FRAME)
    return text


def print_lines(snapshots: Iterator["Snapshot"], picture: Picture) -> str:
    """Print a line for every forward pass; returns the final text."""
    text = ""
    for snapshot in snapshots:
        picture.update(snapshot)
        typer.echo(f"{picture.forward:4d} {picture.plain()}")
        text = snapshot.text or ""
    return text


@dataclass(slots=True)
class Clock:
    """Seconds spent inside an iterator, without the time of its consumer."""

    seconds: float = 0.0

    def timed(self, steps: Iterator["Snapshot"]) -> Iterator["Snapshot"]:
        """Yield the same steps, and time them."""
        while True:
            began = time.perf_counter()
            step = next(steps, None)
            self.seconds += time.perf_counter() - began
            if step is None:
                return
            yield step
