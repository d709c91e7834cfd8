"""Distillation targets: what the model itself decodes, one token per forward pass."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlm.data import TASKS, Example
from dlm.distill.weights import facts
from dlm.generation import generate
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.options import integer, integers
from dlm.prompts import Prompt, encode_prompts
from dlm.settings import Settings

FILE = "targets.jsonl"


@dataclass(frozen=True, slots=True)
class Teacher:
    """How targets are decoded: low_confidence at temperature 0, one token per forward pass."""

    gen_length: int = 256  # tokens of every target
    block_length: int | None = 32  # tokens; blocks are decoded left to right; None for one block
    batch_size: int = 16  # prompts decoded at once; changes no target

    def __post_init__(self) -> None:
        for name in ("gen_length", "batch_size"):
            integer(name, getattr(self, name), least=1)
        if self.block_length is not None:
            integer("block_length", self.block_length, least=1)


@dataclass(frozen=True, slots=True)
class Target:
    """One prompt and the response that the model decodes for it."""

    prompt: list[int]
    response: list[int]  # `gen_length` tokens, filled with end of text after a stop token
    right: bool | None  # whether it solves its task; None if that cannot be checked


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
    """Decode every prompt and write `targets.jsonl` on the way, resuming an earlier run.

    Only the whole batches of an earlier run are kept. So the batches are the same as without the
    interruption, and so are the network's outputs. Nothing is written before all is checked.

    Args:
        model: the teacher.
        examples: prompts; their responses are not used.
        teacher: how to decode.
        out: folder of the file.
        chat: pass prompts through the chat template; False takes them as they stand.
        name: of the model, recorded in the file.
        report: called with the number of targets done and their total.

    Raises:
        ValueError: a prompt is invalid or too long for the model, or the file is damaged or belongs
            to another model, other settings or other prompts.
    """
    from accelerate import PartialState  # type: ignore[import-untyped]

    prompts = encode(model, examples, teacher, chat=chat)
    head = {"model": name, **facts(model), "prompts": len(prompts), "chat": chat, **asdict(teacher)}
    del head["batch_size"]
    head = json.loads(json.dumps(head))  # as it will be read back
    # With several processes, one decodes, and the others read what it has written.
    with PartialState(cpu=model.device.type == "cpu").main_process_first():
        done = reopen(out / FILE, head, prompts, teacher.batch_size)
        with (out / FILE).open("a") as file:
            for begin in range(len(done), len(prompts), teacher.batch_size):
                stop = begin + teacher.batch_size
                for target in decode(model, examples[begin:stop], prompts[begin:stop], teacher):
                    done.append(target)
                    file.write(json.dumps(asdict(target)) + "\n")
                file.flush()
                report(len(done), len(prompts))
    return done


def encode(
    model: Model, examples: Sequence[Example], teacher: Teacher, *, chat: bool
) -> list[list[int]]:
    """The token ids of every prompt, checked.

    Raises:
        ValueError: there is no prompt, or one that is invalid or too long for the model.
    """
    given = [as_prompt(example.prompt, chat) for example in examples]
    if not given:
        raise ValueError("targets need at least one prompt, got none")
    prompts = encode_prompts(model, given)
    check_job(model, prompts, teacher)
    return prompts


def check_family(spec: ModelSpec) -> None:
    """Refuse families whose training rows would not match what the model sees in decoding.

    Raises:
        ValueError: tokens before the active block see nothing after themselves (causal attention),
            or attention blocks are counted from the end of the prompt.
    """
    if spec.anchored:
        raise ValueError(
            f"certainty distillation is not for {spec.family} with blocks behind the prompt: load "
            "it without block_size"
        )
    if spec.causal:
        raise ValueError(
            f"certainty distillation is not for {spec.family}, whose finished blocks are causal: "
            "distil a schedule"
        )


def check_job(model: Model, prompts: Sequence[list[int]], teacher: Teacher) -> None:
    """Refuse settings that the model cannot decode; the longest prompt stands for all."""
    check_family(model.spec)
    settings = Settings(gen_length=teacher.gen_length, block_length=teacher.block_length)
    generation_job(model, [max(prompts, key=len)], settings)


def check_prompts(path: Path, done: Sequence[Target], prompts: Sequence[list[int]]) -> None:
    """Refuse a file whose targets do not belong to the first of the prompts, in order."""
    for number, (target, prompt) in enumerate(zip(done, prompts, strict=False)):
        if target.prompt != prompt:
            raise ValueError(f"{path} holds targets of other prompts, from line {number + 2}")
    if len(done) > len(prompts):
        raise ValueError(
            f"{path} is damaged, delete it: it holds {len(done)} targets of {len(prompts)} prompts"
        )


def as_prompt(text: str, chat: bool) -> Prompt:
    """The text as the user's turn of a chat, or unchanged."""
    return [{"role": "user", "content": text}] if chat else text


def decode(
    model: Model, examples: Sequence[Example], prompts: list[list[int]], teacher: Teacher
) -> Iterator[Target]:
    """Decode the targets of one batch."""
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


def reopen(
    path: Path, head: dict[str, Any], prompts: Sequence[list[int]], batch_size: int
) -> list[Target]:
    """Read the whole batches of an earlier run and cut the rest off the file; or start a new file.

    Raises:
        ValueError: the file is damaged, or belongs to another model, other settings or prompts.
    """
    # The text after the last newline is an incomplete line.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head) + "\n")
        return []
    check_head(path, lines[0], head)
    done = [read_target(path, n, line, head) for n, line in enumerate(lines[1:], start=2)]
    check_prompts(path, done, prompts)
    kept = len(done) if len(done) == len(prompts) else len(done) - len(done) % batch_size
    os.truncate(path, sum(len(line) + 1 for line in lines[: kept + 1]))
    return done[:kept]


def check_head(path: Path, line: bytes, head: dict[str, Any]) -> None:
    """Refuse a file whose first line records other settings than this run's."""
    try:
        written = json.loads(line)
        if not isinstance(written, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged in line 1, delete it: {error}") from None
    differ = sorted(key for key in head if key not in written or written[key] != head[key])
    if differ:
        raise ValueError(f"{path} was written with other settings; these differ: {differ}")


def read_target(path: Path, number: int, line: bytes, head: dict[str, Any]) -> Target:
    """Parse a line after the first."""
    try:
        target = Target(**json.loads(line))
        for name in ("prompt", "response"):
            integers(name, getattr(target, name), least=0, most=head["vocab_size"] - 1)
        if len(target.response) != head["gen_length"]:
            raise ValueError(f"a response of {len(target.response)} tokens")
        if target.right not in (True, False, None):
            raise ValueError(f"right is {target.right!r}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged in line {number}, delete it: {error}") from None
    return target
