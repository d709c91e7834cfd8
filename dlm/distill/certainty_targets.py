"""Targets of a distillation: what the model itself decodes, one token a forward."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlm.data import TASKS, Example
from dlm.generation import generate
from dlm.models.model import Model
from dlm.options import integer
from dlm.prompts import Prompt, encode_prompts

FILE = "targets.jsonl"


@dataclass(frozen=True, slots=True)
class Teacher:
    """How targets are decoded: low_confidence at temperature 0, one token a forward."""

    gen_length: int = 256  # tokens of every target
    block_length: int | None = 32  # tokens committed from left to right; None for one block
    batch_size: int = 16  # prompts at a time; changes no target

    def __post_init__(self) -> None:
        for name in ("gen_length", "batch_size"):
            integer(name, getattr(self, name), least=1)
        if self.block_length is not None:
            integer("block_length", self.block_length, least=1)


@dataclass(frozen=True, slots=True)
class Target:
    """One prompt and what the model makes of it."""

    prompt: list[int]
    response: list[int]  # `gen_length` tokens, filled with end of text behind a stop token
    right: bool | None  # whether it solves its task; None where there is no telling


def make_targets(
    model: Model,
    examples: Sequence[Example],
    teacher: Teacher,
    out: Path,
    *,
    chat: bool = True,
    name: str | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Target]:
    """Decode every prompt and write `targets.jsonl` on the way, from where it was left.

    Args:
        model: the teacher.
        examples: prompts; their responses are not looked at.
        teacher: how to decode.
        out: folder of the file.
        chat: put prompts through the chat template; False takes them as they stand.
        name: of the model, for the file.
        report: told how many targets there are, of how many.

    Raises:
        ValueError: a bad prompt, or a file of other settings or other prompts.
    """
    from accelerate import PartialState  # type: ignore[import-untyped]

    given = [as_prompt(example.prompt, chat) for example in examples]
    prompts = encode_prompts(model, given) if given else []
    if not prompts:
        raise ValueError("targets need at least one prompt, got none")
    head = {"model": name, "chat": chat} | asdict(teacher)
    del head["batch_size"]
    # Of several processes one decodes, and the others read what it has written.
    with PartialState(cpu=model.device.type == "cpu").main_process_first():
        done = reopen(out / FILE, head)
        check_prompts(out / FILE, done, prompts)
        with (out / FILE).open("a") as file:
            for begin in range(len(done), len(prompts), teacher.batch_size):
                stop = begin + teacher.batch_size
                for target in decode(model, examples[begin:stop], prompts[begin:stop], teacher):
                    done.append(target)
                    file.write(json.dumps(asdict(target)) + "\n")
                file.flush()
                report(len(done), len(prompts))
    return done


def check_prompts(path: Path, done: Sequence[Target], prompts: Sequence[list[int]]) -> None:
    """Refuse a file whose targets are not those of the first prompts."""
    for number, (target, prompt) in enumerate(zip(done, prompts, strict=False)):
        if target.prompt != prompt:
            raise ValueError(f"{path} holds targets of other prompts, from line {number + 2}")
    if len(done) > len(prompts):
        raise ValueError(
            f"{path} holds {len(done)} targets, more than the {len(prompts)} prompts asked for"
        )


def as_prompt(text: str, chat: bool) -> Prompt:
    """A text as the user's turn of a chat, or as it stands."""
    return [{"role": "user", "content": text}] if chat else text


def decode(
    model: Model, examples: Sequence[Example], prompts: list[list[int]], teacher: Teacher
) -> Iterator[Target]:
    """Targets of one batch."""
    out = generate(
        model,
        prompts,
        gen_length=teacher.gen_length,
        block_length=teacher.block_length,
    )
    texts: Sequence[str | None] = out.texts or [None] * len(prompts)
    for example, prompt, tokens, text in zip(examples, prompts, out.tokens, texts, strict=True):
        task = TASKS.get(example.task)
        right = None if task is None or text is None else task.is_correct(example.prompt, text)
        yield Target(prompt, tokens, right)


def reopen(path: Path, head: dict[str, Any]) -> list[Target]:
    """The targets of a file that a run may have left, without a line cut short; else a new file.

    Raises:
        ValueError: it was written with other settings.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head) + "\n")
        return []
    *whole, rest = path.read_text().split("\n")  # what follows the last newline was cut
    if rest or not whole:
        whole = whole or [json.dumps(head)]
        path.write_text("".join(f"{line}\n" for line in whole))
    written = json.loads(whole[0])
    differ = sorted(key for key in head if written.get(key) != head[key])
    if differ:
        raise ValueError(f"{path} was written with other settings; these differ: {differ}")
    return [parse(line, f"{path}:{number}") for number, line in enumerate(whole[1:], start=2)]


def parse(line: str, where: str) -> Target:
    """One line."""
    try:
        return Target(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: not a target ({error})") from None
