"""A task: data and a few pure functions, without an evaluation loop of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import dlm
from dlm.options import known

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One item of a data set."""

    id: str  # as in the data set, where it is unique
    fields: Mapping[str, str]  # what templates may refer to
    answer: str  # reference, as in the data set
    data: Mapping[str, Any] = field(default_factory=dict)  # what checks need besides


class Row(NamedTuple):
    """A problem as the model receives it."""

    prompt: str | Messages  # for people to read
    tokens: list[int]
    blanks: range | None = None  # positions to fill; None: decode after the tokens


@dataclass(frozen=True, slots=True)
class Template:
    """How a problem is presented to a model.

    `prompt` is a `str.format` text over the fields of a problem. `target` is one over the fields
    and `answer`; it is the reply of a solved example. A chat template makes the prompt a user
    message, and the examples earlier turns. A base template concatenates everything.
    """

    name: str
    prompt: str
    chat: bool = False
    shots: int = 0  # solved examples before the problem
    target: str = "{answer}"
    separator: str = "\n\n"
    instruction: str = ""  # put before everything else
    until: tuple[str, ...] = ()  # the output is cut at the first of these

    def render(self, problem: Problem, shots: Sequence[Problem] = ()) -> str | Messages:
        """The prompt of a problem after solved examples: text, or chat messages.

        Raises:
            ValueError: the number of examples is not `shots`.
        """
        if len(shots) != self.shots:
            raise ValueError(
                f"template {self.name!r} needs {self.shots} solved examples, got {len(shots)}"
            )
        asked = [self.prompt.format(**each.fields) for each in (*shots, problem)]
        told = [self.target.format(**{"answer": each.answer} | dict(each.fields)) for each in shots]
        if not self.chat:
            solved = [a + t + self.separator for a, t in zip(asked, told, strict=False)]
            return self.instruction + "".join(solved) + asked[-1]
        messages: Messages = []
        for question, answer in zip(asked, [*told, ""], strict=True):
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        messages[0]["content"] = self.instruction + messages[0]["content"]
        return messages[:-1]

    def rows(
        self, model: "dlm.Model", problems: Sequence[Problem], shots: Sequence[Problem]
    ) -> list[Row]:
        """The prompts of problems, each after the same solved examples."""
        prompts = [self.render(each, shots) for each in problems]
        return list(map(Row, prompts, dlm.encode_prompts(model, prompts)))

    def cut(self, output: str) -> str:
        """The output up to the first stop text."""
        ends = [at for at in map(output.find, self.until) if at >= 0]
        return output[: min(ends)] if ends else output


@dataclass(frozen=True, slots=True)
class InfillTemplate:
    """How many blanks a model gets for the text between `prefix` and `suffix` of a problem.

    The output is the text that fills the blanks.
    """

    name: str
    blanks: int | None = None  # None: as many as the reference has tokens, the oracle length

    chat: ClassVar[bool] = False
    shots: ClassVar[int] = 0

    def length(self, problem: Problem, model: "dlm.Model") -> int:
        """The number of blanks of a problem.

        Raises:
            ValueError: the model has no tokenizer.
        """
        if self.blanks is not None:
            return self.blanks
        if model.tokenizer is None:
            raise ValueError("an evaluation needs a model with a tokenizer")
        return len(model.tokenizer(problem.answer, add_special_tokens=False)["input_ids"])

    def render(self, problem: Problem, model: "dlm.Model") -> list[int]:
        """The token ids of a problem, with the mask id for each blank."""
        prefix, suffix = problem.fields["prefix"], problem.fields["suffix"]
        return dlm.encode_infill(model, prefix, suffix, self.length(problem, model))

    def rows(
        self, model: "dlm.Model", problems: Sequence[Problem], shots: Sequence[Problem]
    ) -> list[Row]:
        """Problems with their blanks; there are no solved examples."""
        assert not shots
        found = []
        for each in problems:
            tokens, mask = self.render(each, model), model.spec.mask_id
            first, count = tokens.index(mask), tokens.count(mask)
            prompt = f"{each.fields['prefix']}[MASK:{count}]{each.fields['suffix']}"
            found.append(Row(prompt, tokens, range(first, first + count)))
        return found

    def cut(self, output: str) -> str:
        """The whole output: the text after it is given."""
        return output


AnyTemplate = Template | InfillTemplate


@dataclass(frozen=True, slots=True)
class Check:
    """A program to run: whether `solution` passes `tests`."""

    solution: str  # Python source, untrusted
    tests: str  # Python source, trusted; passes if it ends without an exception
    names: tuple[str, ...] = ()  # globals of the solution that the tests call; all if empty


@dataclass(frozen=True, slots=True)
class Metric:
    """A way to read and score an output; exactly one of `is_correct` and `check` is set."""

    name: str
    extract: Callable[[Problem, str], str | None]  # the answer in an output without thoughts
    is_correct: Callable[[Problem, str], float] | None = None  # of what was extracted; 0 to 1
    check: Callable[[Problem, str], Check] | None = None  # for extracted code
    spell: Callable[[str], str] | None = None  # normalises equal answers, for votes

    def vote(self, extracted: str | None) -> str | None:
        """The extracted answer as majority votes count it; None for nothing and for code."""
        if extracted is None or self.check is not None:
            return None
        return (self.spell or str.strip)(extracted)


@dataclass(frozen=True, slots=True)
class Preset:
    """Decoding options that a paper reports, and the result it reports for them."""

    name: str
    options: Mapping[str, Any]  # including the decoder and its options
    source: str  # where it is from
    reported: str = ""  # accuracy in percent and forward passes, as published
    template: str | None = None  # None: the first that fits the model

    @property
    def decoder(self) -> str:
        """The decoder, unless the user gives another one."""
        return str(self.options.get("decoder", "low_confidence"))

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The options of the decoder that are set."""
        return dict(self.options.get("decoder_options") or {})

    @property
    def generation(self) -> dict[str, Any]:
        """All options except the decoder's."""
        return {k: v for k, v in self.options.items() if k not in ("decoder", "decoder_options")}


@dataclass(frozen=True, slots=True)
class Source:
    """Where problems come from, best first: the user's file, the package, the hub."""

    read: Callable[[Path], list[Problem]]  # a file in the published format
    local: Callable[[], list[Problem]] | None = None  # without a file or a network connection
    hub: Callable[[], list[Problem]] | None = None  # through `datasets`
    examples: Callable[[Path | None], list[Problem]] | None = None  # solved ones, held in
    where: str = ""  # for messages: what to download
    held_in: frozenset[str] = frozenset()  # ids of solved examples among the problems: not scored


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: problems, prompts, and how outputs are read and scored."""

    name: str
    version: int  # increased whenever scores could change
    summary: str
    paper: str  # authors, year, arXiv id
    licence: str  # of the data
    source: Source
    templates: tuple[AnyTemplate, ...]  # the first of each kind is the default for its models
    metrics: tuple[Metric, ...]  # the first is the score
    presets: tuple[Preset, ...]  # the first is the default
    requires: tuple[str, ...] = ()  # modules that scoring needs

    def __post_init__(self) -> None:
        if len({isinstance(each, InfillTemplate) for each in self.templates}) > 1:
            raise ValueError(f"templates of {self.name!r} must fill blanks, or none of them")

    @property
    def runs_code(self) -> bool:
        """Whether outputs are executed."""
        return any(metric.check is not None for metric in self.metrics)

    @property
    def infills(self) -> bool:
        """Whether the task fills blanks with `dlm.infill`, instead of continuing a prompt."""
        return isinstance(self.templates[0], InfillTemplate)

    def template(self, name: str) -> AnyTemplate:
        """The template with this name.

        Raises:
            ValueError: there is none; the message has the closest match and the list.
        """
        known(f"template of {self.name}", name, (each.name for each in self.templates))
        return next(each for each in self.templates if each.name == name)

    def preset(self, name: str | None) -> Preset:
        """The preset with this name; the first for None.

        Raises:
            ValueError: there is none; the message has the closest match and the list.
        """
        if name is None:
            return self.presets[0]
        known(f"preset of {self.name}", name, (each.name for each in self.presets))
        return next(each for each in self.presets if each.name == name)

    def default_template(self, *, chat: bool) -> AnyTemplate:
        """The first template for models with, or without, a chat template."""
        return next((t for t in self.templates if t.chat == chat), self.templates[0])
