"""Streamers: text as it becomes final, and drafts before that."""

import shutil
import sys
from collections.abc import Collection
from typing import Any, TextIO

import torch
from rich.cells import cell_len, chop_cells
from transformers.generation.streamers import TextStreamer

from dlm.job import Job
from dlm.runtime import Step
from dlm.traits import Traits

CLEAR = "\x1b[{column}G\x1b[K"  # move to a column, clear the rest of the line
DIM = "\x1b[2m{text}\x1b[0m"


def check(streamer: Any, rows: int, stops: Collection[str] = ()) -> None:
    """Refuse a streamer that cannot follow a generation.

    Raises:
        ValueError: it lacks `put` or `end` or takes logits, or there are several rows or any stop
            texts.
    """
    for name in ("put", "end"):
        if not callable(getattr(streamer, name, None)):
            raise ValueError(f"streamer must have put and end, got {streamer!r}")
    if getattr(streamer, "_takes_logits", False):
        raise ValueError("streamer must take token ids: logits of a draft are not kept")
    if stops:
        raise ValueError(f"streamer takes tokens, and stop_strings cut texts, got {list(stops)}")
    if rows != 1:
        raise ValueError(f"streamer follows one row, got {rows}")


class Follower:
    """Tells a streamer what each forward pass of a one-row job made final, and what it drafted.

    Tokens are final once no later forward pass can change them, see `Traits.settled`.
    """

    def __init__(self, streamer: Any, job: Job, stop_ids: Collection[int]) -> None:
        """Store the streamer, the job it follows, and the tokens that end the row."""
        self.streamer = streamer
        self.begin, self.end = job.spans[0]
        self.traits = Traits.of(job.decoder)
        self.mask_id = job.model.spec.mask_id
        self.stop_ids = stop_ids
        self.told = self.begin  # everything before this position was put

    def __call__(self, step: Step) -> None:
        """Report one forward pass."""
        line = step.tokens[0, : self.end].tolist()
        done = step.done[0]
        if done:
            stops = (i + 1 for i in range(self.begin, self.end) if line[i] in self.stop_ids)
            final = next(stops, self.end)
        else:
            block = int(step.view.block_start[0])
            final = self.traits.settled(line, self.begin, block, self.mask_id)
        final = max(self.told, final)
        if final > self.told:
            self.streamer.put(torch.tensor(line[self.told : final]))
            self.told = final
        put_draft = getattr(self.streamer, "put_draft", None)
        if done or put_draft is None:
            return
        known = [i for i in range(self.told, self.end) if line[i] != self.mask_id]
        if known:
            put_draft(value=torch.tensor([line[self.told : known[-1] + 1]]))


class TextDiffusionStreamer(TextStreamer):
    """Prints the text of one row as it becomes final, followed by a draft of the rest.

    The draft is dim, stays within the line, and appears only on a terminal; elsewhere only final
    text is written. Masked tokens are shown as `mask`. transformers' class of the same name prints
    drafts of any length, mask tokens by name, and control codes even into files.

    Args:
        tokenizer: the model's tokenizer.
        skip_prompt: do not print the prompt.
        mask: text shown for a masked token.
        mask_id: id of masked tokens; by default the tokenizer's.
        file: where to write; by default standard output.
        **decode_kwargs: passed to the tokenizer's `decode`, such as `skip_special_tokens`.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        *,
        mask: str = "_",
        mask_id: int | None = None,
        file: TextIO | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.mask = mask
        self.mask_id = tokenizer.mask_token_id if mask_id is None else mask_id
        self.file = sys.stdout if file is None else file
        self.column = 0  # at which the final text ends
        self.drafted = False

    def put_draft(self, value: torch.Tensor) -> None:
        """Replace the draft by tokens [1, n], which may still change."""
        if not self.file.isatty():
            return
        self.wipe()
        # The base class still holds back the end of the final text: show it before the draft.
        waiting = self.text(self.token_cache)[self.print_len :]
        room = max(0, shutil.get_terminal_size().columns - self.column - 1)
        text = " ".join((waiting + self.text(value.reshape(-1).tolist())).split("\n"))
        text = chop_cells(text, room)[0] if room and text else ""
        print(DIM.format(text=text), end="", flush=True, file=self.file)
        self.drafted = True

    def text(self, tokens: list[int]) -> str:
        """The text of tokens, with `mask` for masked ones."""
        pieces: list[str] = []
        held: list[int] = []
        for token in [*tokens, self.mask_id]:
            if token != self.mask_id:
                held.append(token)
                continue
            pieces.append(str(self.tokenizer.decode(held, **self.decode_kwargs)) if held else "")
            held = []
        return self.mask.join(pieces)

    def wipe(self) -> None:
        """Clear the draft from the screen."""
        if self.drafted:
            print(CLEAR.format(column=self.column + 1), end="", flush=True, file=self.file)
            self.drafted = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print final text."""
        self.wipe()
        print(text, flush=True, end="\n" if stream_end else "", file=self.file)
        width = shutil.get_terminal_size().columns
        last = text.rsplit("\n", 1)
        self.column = (cell_len(last[-1]) + (self.column if len(last) == 1 else 0)) % width
