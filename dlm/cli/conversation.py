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
    """Questions and answers so far, all of which the model sees.

    Raises:
        ValueError: the model has no chat template.
    """

    model: Model
    options: dict[str, Any]  # of `dlm.stream`
    system: str | None = None
    messages: Messages = field(default_factory=list)  # without the system's
    turn: int = 0
    """Questions answered since the session began: each has a seed of its own, so that one that is
    asked again is answered anew, and the same session gives the same answers."""
    prompt_cache: PromptCache | None = field(init=False, default=None)
    """What earlier turns left to later ones, where the family and the options allow it."""

    def __post_init__(self) -> None:
        if tokenizer_of(self.model, "dlm chat").chat_template is None:
            raise ValueError(
                "dlm chat needs a chat template, which this model has not: use dlm generate"
            )
        if PromptCache.suits(self.model) and PromptCache.serves(Settings.of(self.options)):
            self.prompt_cache = PromptCache(self.model)

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = []

    def ask(self, question: str, *, show: bool) -> Result | None:
        """Answer a question; None if Ctrl-C stopped that.

        What was final by then is kept as the answer. If nothing was, or the question is refused,
        the conversation is what it was.

        Args:
            question: of the user.
            show: print the answer as it becomes final.

        Raises:
            ValueError: the model has no positions for it, or an option does not fit the model.
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
        """Refuse a conversation that has outgrown the model: none of it is left out unsaid."""
        spec = self.model.spec
        length = len(encode_prompts(self.model, prompt)[0]) + gen_length + len(spec.suffix)
        if length > spec.max_length:
            raise ValueError(
                f"the conversation and an answer of {gen_length} tokens must fit the model's "
                f"{spec.max_length} positions, got {length}: /clear begins anew, and a smaller "
                "--gen-length leaves more room"
            )


def decode(job: Job, printer: "Printer") -> Generation | None:
    """Decode an answer and show it; None if Ctrl-C stopped it between two forwards."""
    follow = Follower(printer, job, job.model.spec.stop_ids)
    try:
        with stop_after_step(None) as check:
            return finish(job, partial(tell, follow, check))
    except KeyboardInterrupt:
        return None
    finally:
        printer.end()


def tell(follow: Follower, check: Callable[[], None], step: Step) -> None:
    """Show what a forward made, and stop there if that was asked for before the last one."""
    follow(step)
    if not step.done[0]:
        check()


class Printer:
    """Shows an answer as it becomes final, up to the stop token where its text ends."""

    def __init__(self, model: Model, *, show: bool) -> None:
        """Take whose tokens they are, and whether they are printed at all."""
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
        """Print tokens that stay."""
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
        """Print what was held back, and end the line."""
        if self.streamer is not None:
            self.streamer.end()

    def cut(self, value: torch.Tensor) -> list[int]:
        """Tokens in front of the first stop token."""
        tokens: list[int] = value.tolist()
        stop = next((n for n, token in enumerate(tokens) if token in self.stop_ids), len(tokens))
        return tokens[:stop]
