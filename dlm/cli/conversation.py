"""The turns of `dlm chat`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console

from dlm.cli.inputs import Messages, with_system
from dlm.cli.results import Result
from dlm.cli.train import stop_after_step
from dlm.generation import finish
from dlm.huggingface.streamers import Follower, TextDiffusionStreamer
from dlm.job import Job, generation_job
from dlm.models.model import Model
from dlm.outputs import Generation
from dlm.prompt_cache import PromptCache
from dlm.prompts import decode_text, encode_prompts, tokenizer_of
from dlm.runtime import Step
from dlm.settings import Settings


@dataclass(slots=True)
class Conversation:
    """The questions and answers so far; the model sees all of them.

    Raises:
        ValueError: the model has no chat template.
    """

    model: Model
    options: dict[str, Any]  # of `dlm.stream`
    system: str | None = None
    messages: Messages = field(default_factory=list)  # without the system message
    turn: int = 0
    """Questions answered since the session began. Each turn has its own seed, so that a repeated
    question gets a new answer, and a repeated session gets the same answers."""
    prompt_cache: PromptCache | None = field(init=False, default=None)
    """Keys and values kept between turns, if the family and the options allow a prompt cache."""

    def __post_init__(self) -> None:
        if tokenizer_of(self.model, "dlm chat").chat_template is None:
            raise ValueError(
                "dlm chat needs a chat template, which this model has not: use dlm generate"
            )
        if PromptCache.suits(self.model) and PromptCache.serves(Settings.of(self.options)):
            self.prompt_cache = PromptCache(self.model)

    def clear(self) -> None:
        """Forget all messages."""
        self.messages = []

    def ask(self, question: str, *, show: bool) -> Result | None:
        """Answer a question; None if Ctrl-C stopped the answer.

        The tokens that were final by then are kept as the answer. If there were none, or if the
        question is refused, the conversation stays as it was.

        Args:
            question: the user's question.
            show: print the answer as it becomes final.

        Raises:
            ValueError: the conversation does not fit the model's positions, or an option does not
                suit the model.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        prompt = with_system(asked, self.system)
        options = {**self.options, "seed": self.options["seed"] + self.turn}
        settings = Settings.of(options)
        self.check_length(prompt, settings.gen_length)
        job = generation_job(self.model, prompt, settings, self.prompt_cache)
        self.turn += 1
        printer = Printer(self.model, show=show)
        began = time.perf_counter()
        out = decode(job, printer)
        text = decode_text(self.model, printer.final) if out is None else (out.texts or [""])[0]
        if out is not None or text:
            self.messages = [*asked, {"role": "assistant", "content": text}]
        if out is None:
            return None
        return Result(
            prompt=question,
            text=text,
            tokens=out.tokens[0],
            forwards=out.forwards[0],
            query_tokens=out.query_tokens[0],
            tokens_per_forward=out.tokens_per_forward,
            seconds=time.perf_counter() - began,
            seed=options["seed"],
            decoder=self.options["decoder"],
        )

    def check_length(self, prompt: Any, gen_length: int) -> None:
        """Refuse a conversation too long for the model: no part of it is dropped silently."""
        spec = self.model.spec
        length = len(encode_prompts(self.model, prompt)[0]) + gen_length + len(spec.suffix)
        if length > spec.max_length:
            raise ValueError(
                f"the conversation and an answer of {gen_length} tokens must fit the model's "
                f"{spec.max_length} positions, got {length}: /clear begins anew, and a smaller "
                "--gen-length leaves more room"
            )


def decode(job: Job, printer: "Printer") -> Generation | None:
    """Decode an answer and show it; None if Ctrl-C stopped it between two forward passes."""
    follow = Follower(printer, job, job.model.spec.stop_ids)
    try:
        with stop_after_step(None) as check:
            return finish(job, partial(tell, follow, check))
    except KeyboardInterrupt:
        return None
    finally:
        printer.end()


def tell(follow: Follower, check: Callable[[], None], step: Step) -> None:
    """Show what a forward pass changed, and stop on Ctrl-C unless it was the last one."""
    follow(step)
    if not step.done[0]:
        check()


class Printer:
    """Shows an answer as it becomes final, up to the stop token that ends its text."""

    def __init__(self, model: Model, *, show: bool) -> None:
        """Take the model whose tokens these are, and whether to print anything."""
        self.stop_ids = model.spec.stop_ids
        self.final: list[int] = []
        self.ended = False
        self.drafts = not Console().is_dumb_terminal
        self.streamer: Any = None  # transformers annotates none of its methods
        if show:
            self.streamer = TextDiffusionStreamer(
                model.tokenizer,
                mask_id=model.spec.mask_id,
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )

    def put(self, value: torch.Tensor) -> None:
        """Print tokens that are final."""
        tokens = [] if self.ended else self.cut(value)
        self.ended |= len(tokens) < len(value)
        self.final += tokens
        if tokens and self.streamer is not None:
            self.streamer.put(torch.tensor(tokens))

    def put_draft(self, value: torch.Tensor) -> None:
        """Draw tokens that may still change."""
        if self.streamer is not None and self.drafts and not self.ended:
            self.streamer.put_draft(torch.tensor([self.cut(value[0])], dtype=torch.int64))

    def end(self) -> None:
        """Print what is still held back, and end the line."""
        if self.streamer is not None:
            self.streamer.end()

    def cut(self, value: torch.Tensor) -> list[int]:
        """The tokens before the first stop token."""
        tokens: list[int] = value.tolist()
        stop = next((n for n, token in enumerate(tokens) if token in self.stop_ids), len(tokens))
        return tokens[:stop]
