"""Prompts to decode, batch by batch."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from dlm.cli.inputs import Messages, Row, as_chat, with_system
from dlm.cli.results import Result, print_result

if TYPE_CHECKING:
    from dlm.models.model import Model


@dataclass(frozen=True, slots=True)
class Job:
    """What to decode, and how."""

    rows: list[Row]
    options: dict[str, Any]  # of `dlm.generate`
    chat: bool  # texts are user messages
    infill: bool  # texts have blanks
    system: str | None = None  # message in front of the others

    def check(self) -> None:
        """Refuse bad options before a model is loaded."""
        from dlm.settings import Settings

        self.prompts(self.rows)
        if self.infill and "gen_length" in self.options:
            raise ValueError("--infill decodes the blanks of a text: leave --gen-length out")
        Settings.of(self.options)

    def prompts(self, rows: list[Row]) -> list[str | Messages]:
        """Rows as the library takes them."""
        given = [as_chat(row.prompt) if self.chat else row.prompt for row in rows]
        return [with_system(prompt, self.system) for prompt in given]

    def watch(self, model: "Model") -> None:
        """Draw the one prompt's canvas."""
        from dlm.cli.watch import watch

        watch(model, self.prompts(self.rows)[0], self.options)

    def run(self, model: "Model", batch_size: int, *, machine: bool) -> None:
        """Print the result of every prompt as soon as its batch is done."""
        starts = range(0, len(self.rows), batch_size)
        console = Console(stderr=True)
        # A bar would get between texts that appear on the same terminal.
        shown = len(starts) > 1 and console.is_terminal and not sys.stdout.isatty()
        with Progress(
            console=console, transient=True, redirect_stdout=False, disable=not shown
        ) as bar:
            for start in bar.track(starts, description="decoding"):
                for result in self.batch(model, range(len(self.rows))[start : start + batch_size]):
                    print_result(result, machine=machine)

    def batch(self, model: "Model", numbers: range) -> Iterator[Result]:
        """Decode some prompts; a prompt's number keys its noise, so batches change nothing."""
        from dlm.generation import generate, infill

        rows = [self.rows[number] for number in numbers]
        prompts = self.prompts(rows)
        began = time.perf_counter()
        call: Any = infill if self.infill else generate
        out = call(model, prompts, row_keys=numbers, **self.options)
        seconds = time.perf_counter() - began
        for line, row in enumerate(rows):
            yield Result(
                prompt=row.prompt,
                labels=row.labels,
                text=out.texts[line],
                tokens=out.tokens[line],
                forwards=out.forwards[line],
                query_tokens=out.query_tokens[line],
                tokens_per_forward=out.decoded[line] / out.forwards[line],
                seconds=seconds,
                seed=self.options["seed"],
                decoder=self.options["decoder"],
            )
