"""The decoding job of `dlm generate`."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlm.cli.inputs import Messages, Row, as_chat, with_system
from dlm.cli.pace import Pace
from dlm.cli.results import Result, print_result

if TYPE_CHECKING:
    from dlm.models.model import Model
    from dlm.outputs import Generation

    Keep = Callable[[int, Generation], None]


@dataclass(frozen=True, slots=True)
class Job:
    """The prompts to decode, and the options."""

    rows: list[Row]
    options: dict[str, Any]  # of `dlm.generate`, or of `dlm.infill`
    chat: bool  # wrap texts as user messages
    infill: bool  # texts have blanks to fill
    system: str | None = None  # system message put before the others
    growth: dict[str, Any] = field(default_factory=dict)  # options that only `dlm.infill` has

    def check(self) -> None:
        """Refuse bad options before a model is loaded."""
        from dlm.infilling import check_options
        from dlm.settings import Settings

        self.prompts(self.rows)
        if not self.infill:
            if self.growth:
                name = next(iter(self.growth)).replace("_", "-")
                raise ValueError(f"--{name} is for the blanks of texts: give --infill, too")
            Settings.of(self.options)
            return
        if "gen_length" in self.options:
            raise ValueError("--infill decodes the blanks of a text: leave --gen-length out")
        if any(row.gen_length for row in self.rows):
            raise ValueError('--infill decodes the blanks of a text: leave "gen_length" out')
        check_options({**self.options, **self.growth})

    def prompts(self, rows: list[Row]) -> list[str | Messages]:
        """The rows in the form that the library takes."""
        given = [as_chat(row.prompt) if self.chat else row.prompt for row in rows]
        return [with_system(prompt, self.system) for prompt in given]

    def watch(self, model: "Model") -> None:
        """Draw the canvas of the single prompt."""
        from dlm.cli.watch import watch

        (row,) = self.rows
        own = {} if row.gen_length is None else {"gen_length": row.gen_length}
        watch(model, self.prompts(self.rows)[0], {**self.options, **own})

    def run(
        self, model: "Model", batch_size: int, *, machine: bool, keep: "Keep | None" = None
    ) -> None:
        """Print the result of every prompt, in the order of the prompts, as soon as it is known.

        Args:
            model: the model that decodes.
            batch_size: prompts decoded at once.
            machine: print JSON instead of texts.
            keep: called with the index of each prompt and its generation.
        """
        what = "texts" if self.infill else "prompts"
        with Pace(lambda: self.lengths(model), what) as pace:
            made = self.generations(model, batch_size, **pace.options)
            for result in in_order(self.results(pace.seen(made), keep)):
                pace.hide()
                print_result(result, machine=machine)

    def lengths(self, model: "Model") -> list[int]:
        """The most tokens to decode for each row."""
        from dlm.prompts import encode_texts

        if not self.infill:
            return [row.gen_length or self.options["gen_length"] for row in self.rows]
        if "max_gen_length" in self.growth:
            return [self.growth["max_gen_length"]] * len(self.rows)
        prompts: Any = self.prompts(self.rows)
        return [row.count(model.spec.mask_id) for row in encode_texts(model, prompts)]

    def results(
        self, made: "Iterable[tuple[int, Generation]]", keep: "Keep | None"
    ) -> Iterator[tuple[int, Result]]:
        """Yield the result of each prompt as it is done, with the index of the prompt."""
        began = time.perf_counter()
        for number, out in made:
            assert out.texts is not None
            if keep is not None:
                keep(number, out)
            yield (
                number,
                Result(
                    prompt=self.rows[number].prompt,
                    labels=self.rows[number].labels,
                    text=out.texts[0],
                    tokens=out.tokens[0],
                    forwards=out.forwards[0],
                    query_tokens=out.query_tokens[0],
                    tokens_per_forward=out.tokens_per_forward,
                    seconds=time.perf_counter() - began,
                    seed=self.options["seed"],
                    decoder=self.options["decoder"],
                ),
            )

    def generations(
        self, model: "Model", batch_size: int, **more: Any
    ) -> "Iterator[tuple[int, Generation]]":
        """Decode each row as if it were alone; `more` is passed on to the library call."""
        from dlm import generation, infilling

        prompts: Any = self.prompts(self.rows)
        each = infilling.infill_each if self.infill else generation.generate_each
        own = {**self.own_lengths(), **self.growth, **more}
        return each(model, prompts, batch_size=batch_size, **own)

    def own_lengths(self) -> dict[str, Any]:
        """The options, with a list of lengths if some prompts have their own."""
        if all(row.gen_length is None for row in self.rows):
            return self.options
        lengths = [row.gen_length or self.options["gen_length"] for row in self.rows]
        return {**self.options, "gen_length": lengths}


def in_order(numbered: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Yield results in the order of their indices, each as soon as all before it are there."""
    held: dict[int, Result] = {}
    count = 0
    for number, result in numbered:
        held[number] = result
        while count in held:
            yield held.pop(count)
            count += 1
